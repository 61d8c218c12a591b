"""Dead letters in PostgreSQL: what failed for good, why, and what an operator wants done with it.

Written in the same commit as the ledger's outcome. `dead retry|edit|discard` only records a request
in the row; the owner of the lane carries it out in its turn (rule 15).
"""

from __future__ import annotations

import datetime
import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from processor.connections.postgres_session import PostgresSession, Row
from processor.connections.sql_literals import quoted
from processor.ledger.lane_rows import Ownership
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a transaction failed: words to show, and the server's own sentence for the row alone."""

    text: str
    sqlstate: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as its owner or an operator reads it."""

    id: str
    hash: str
    buffer: str
    lane: str
    entry_id: str
    keys: tuple[str, ...]
    body: bytes
    reason: str
    sqlstate: str
    detail: str
    attempts: int
    holds: bool
    died_at: Any
    request: str | None
    requested_by: str | None
    edited: bytes | None
    outcome: str
    trace: str | None


_COLUMNS = (
    "id::text, replace(hash::text, '-', ''), buffer::text, lane, entry, keys, body, reason,"
    " sqlstate, detail, attempts, holds, died_at, request, requested_by, edited, outcome, trace"
)


def insert(
    owner: Ownership, entry: Entry, reason: Reason, *, attempts: int, holds: bool, clashing: bool
) -> str:
    """File a transaction; one that lies there already keeps its first reason.

    Unless its id is `clashing` with another payload, it is filed only if the ledger says dead.
    """
    keys = ",".join(quoted(key) for key in entry.keys)
    values = (
        f"'{entry.id}'::uuid, '{entry.hash}'::uuid, '{owner.buffer}'::uuid, {quoted(owner.lane)},"
        f" {quoted(entry.entry_id)}, ARRAY[{keys}]::text[], '\\x{entry.body.hex()}'::bytea,"
        f" {quoted(reason.text)}, {quoted(reason.sqlstate)}, {quoted(reason.detail)}, {attempts},"
        f" {'true' if holds else 'false'}, {'NULL' if entry.trace is None else quoted(entry.trace)}"
    )
    known = f"SELECT FROM processor.ledger WHERE id = '{entry.id}' AND outcome = 'dead'"
    condition = "" if clashing else f" WHERE EXISTS ({known})"
    return (
        "INSERT INTO processor.dead_letter (id, hash, buffer, lane, entry, keys, body, reason,"
        f" sqlstate, detail, attempts, holds, trace) SELECT {values}{condition}"
        " ON CONFLICT (id, hash) DO NOTHING;"
    )


def requests(
    database: PostgresSession, buffer: str, lanes: Sequence[str], count: int
) -> list[DeadLetter]:
    """Dead letters of these lanes for which an operator asked something, oldest request first.

    This is also the call with which an idle owner touches the server (rule 4).
    """
    names = ",".join(quoted(lane) for lane in lanes)
    return _letters(
        database,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE buffer = '{buffer}'"
        f" AND lane = ANY (ARRAY[{names}]::text[]) AND request IS NOT NULL AND outcome = 'dead'"
        f" ORDER BY requested_at, id LIMIT {count}",
    )


def open_holds(
    database: PostgresSession, owner: Ownership, after: str, count: int
) -> list[DeadLetter]:
    """Dead letters of a lane that hold their keys, by entry, for rebuilding the lines."""
    return _letters(
        database,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE buffer = '{owner.buffer}'"
        f" AND lane = {quoted(owner.lane)} AND outcome = 'dead' AND holds"
        f" AND id > '{after}' ORDER BY id LIMIT {count}",
    )


def resolved(letter: DeadLetter, outcome: str) -> str:
    """Close a dead letter as applied or discarded. Raises PR002 if another buffer took it over."""
    return (
        f"WITH met AS (UPDATE processor.dead_letter SET outcome = '{outcome}', request = NULL,"
        f" resolved_at = now() WHERE {_is(letter)} RETURNING 1)"
        " SELECT processor.expect((SELECT count(*) FROM met), 1);"
    )


def failed_again(letter: DeadLetter, reason: Reason) -> str:
    """A retry on request failed: the letter stays, with the new reason."""
    return (
        f"UPDATE processor.dead_letter SET request = NULL, attempts = attempts + 1,"
        f" reason = {quoted(reason.text)}, sqlstate = {quoted(reason.sqlstate)},"
        f" detail = {quoted(reason.detail)}, edited = NULL WHERE {_is(letter)};"
    )


def count_open(database: PostgresSession, buffer: str) -> int:
    """Dead letters of a buffer that wait for a decision."""
    rows = database.run(
        f"SELECT count(*) FROM processor.dead_letter WHERE buffer = '{buffer}' AND outcome = 'dead'"
    )
    return int(rows[0][0])


def open_elsewhere(database: PostgresSession, buffer: str) -> list[tuple[str, int]]:
    """The other buffers whose dead letters wait for a decision, with how many, most first."""
    return [(row[0], row[1]) for row in database.run(
        "SELECT buffer::text, count(*) FROM processor.dead_letter"
        f" WHERE outcome = 'dead' AND buffer <> '{buffer}' GROUP BY 1 ORDER BY 2 DESC, 1"
    )]  # fmt: skip


def listed(
    database: PostgresSession, *, lane: str | None = None, sqlstate: str | None = None,
    since: datetime.datetime | None = None, everything: bool = False, buffer: str | None = None,
    limit: int = 100, after: str | None = None,
) -> list[DeadLetter]:  # fmt: skip
    """A page of dead letters for people, oldest first; `after` is the last id of the page before.

    `sqlstate` may be a class, its first two characters.
    """
    conditions = _conditions(lane, sqlstate, since, everything, buffer)
    if after is not None:
        conditions += f" AND id > '{after}'"
    return _letters(
        database,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE {conditions}"
        f" ORDER BY id LIMIT {limit}",
    )


def count_listed(
    database: PostgresSession, *, lane: str | None = None, sqlstate: str | None = None,
    since: datetime.datetime | None = None, everything: bool = False, buffer: str | None = None,
) -> int:  # fmt: skip
    """How many `listed` would give in all."""
    conditions = _conditions(lane, sqlstate, since, everything, buffer)
    rows = database.run(f"SELECT count(*) FROM processor.dead_letter WHERE {conditions}")
    return int(rows[0][0])


def _conditions(
    lane: str | None, sqlstate: str | None, since: datetime.datetime | None, everything: bool,
    buffer: str | None,
) -> str:  # fmt: skip
    conditions = ["true" if everything else "outcome = 'dead'"]
    if buffer is not None:
        conditions.append(f"buffer = '{buffer}'")
    if lane is not None:
        conditions.append(f"lane = {quoted(lane)}")
    if sqlstate is not None:
        conditions.append(f"starts_with(sqlstate, {quoted(sqlstate)})")
    if since is not None:
        conditions.append(f"died_at >= {quoted(since.isoformat())}")
    return " AND ".join(conditions)


def found(database: PostgresSession, transaction_id: str) -> list[DeadLetter]:
    """The dead letters of one id; more than one if it was used for other payloads."""
    identity = canonical_id("id", transaction_id)
    return _letters(
        database,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE id = '{identity}' ORDER BY died_at",
    )


def ask(
    database: PostgresSession, letter: DeadLetter, request: str, edited: bytes | None = None, *,
    buffer: str | None = None,
) -> bool:  # fmt: skip
    """Record what an operator wants: retry, edit or discard. False if it is decided already.

    `buffer` takes the dead letter over if it is another one's, and counts it among its own.
    """
    taker = buffer or letter.buffer
    text = "NULL" if edited is None else f"'\\x{edited.hex()}'"
    asked = (
        f"UPDATE processor.dead_letter SET request = {quoted(request)}, requested_at = now(),"
        f" requested_by = {quoted(_operator())}, edited = {text}, buffer = '{taker}'"
        f" WHERE {_is(letter)} AND outcome = 'dead' RETURNING lane"
    )
    if taker != letter.buffer:
        asked = (
            f"WITH taken AS ({asked}), counted AS (INSERT INTO processor.lane (buffer, lane, dead)"
            f" SELECT '{taker}'::uuid, lane, 1 FROM taken"
            " ON CONFLICT (buffer, lane) DO UPDATE SET dead = lane.dead + 1)"
            " SELECT lane FROM taken"
        )
    return bool(database.run(asked))


def is_decided(database: PostgresSession, letter: DeadLetter) -> bool:
    """Whether a dead letter was applied or discarded by now."""
    return any(
        now.hash == letter.hash and now.outcome != "dead" for now in found(database, letter.id)
    )


def _letters(database: PostgresSession, sql: str) -> list[DeadLetter]:
    return [_letter(row) for row in database.run(sql)]


def _letter(row: Row) -> DeadLetter:
    fields = list(row)
    fields[5] = tuple(fields[5])
    fields[6] = bytes(fields[6])
    fields[15] = None if fields[15] is None else bytes(fields[15])
    return DeadLetter(*fields)


def _is(letter: DeadLetter) -> str:
    # With its buffer: what was asked of one that was taken over since is another owner's to do.
    return f"id = '{letter.id}' AND hash = '{letter.hash}' AND buffer = '{letter.buffer}'"


def _operator() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
