"""Dead letters: transactions that failed for good, why, and what operators request for them.

A dead letter is written in the same commit as its outcome in the ledger. `dead retry|edit|discard`
only records a request in the row; the owner of the lane carries it out in its turn (rule 15).
"""

from __future__ import annotations

import datetime
import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from processor.connections.postgres_session import PostgresSession, Row
from processor.connections.sql_literals import quoted
from processor.ledger import stored_text
from processor.ledger.lane_rows import Ownership
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a transaction failed.

    `text` is shown. `detail` is PostgreSQL's own message, which can contain values: it is stored in
    the dead letter's row and nowhere else (rule 19). `constraint` and `table` are
    those that the server named, `operation` is the index of the one that failed, if it is known.
    """

    text: str
    sqlstate: str = ""
    detail: str = ""
    constraint: str = ""
    table: str = ""
    operation: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row of `dead_letter`, as the owner of the lane and operators read it."""

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
    #: The version of the envelope that `body` and `edited` belong to.
    version: int = 1


_COLUMNS = (
    "id::text, pg_catalog.replace(hash::text, '-', ''), buffer::text, lane, entry, keys, body,"
    " reason, sqlstate, detail, attempts, holds, died_at, request, requested_by, edited, outcome,"
    " trace, version, texts"
)


def insert(
    owner: Ownership, entry: Entry, reason: Reason, *, attempts: int, holds: bool, clashing: bool,
    encoding: str = "UTF8",
) -> str:  # fmt: skip
    """Return the insert of a dead letter; one that exists keeps its first reason.

    It is inserted only if the ledger's outcome is dead, unless its id is `clashing` with another
    payload. `encoding` is that of the database.
    """
    keys = ",".join(_stored(key, encoding) for key in entry.keys)
    trace = "NULL" if entry.trace is None else _stored(entry.trace, encoding)
    values = (
        f"'{entry.id}'::uuid, '{entry.hash}'::uuid, '{owner.buffer}'::uuid, {quoted(owner.lane)},"
        f" {quoted(entry.entry_id)}, ARRAY[{keys}]::text[], '\\x{entry.body.hex()}'::bytea,"
        f" {_stored(reason.text, encoding)}, {quoted(reason.sqlstate)},"
        f" {_stored(reason.detail, encoding)}, {attempts}, {'true' if holds else 'false'}, {trace},"
        f" {entry.version}, {_exact(entry.keys, entry.trace, reason, encoding)}"
    )
    recorded = f"SELECT FROM processor.ledger WHERE id = '{entry.id}' AND outcome = 'dead'"
    condition = "" if clashing else f" WHERE EXISTS ({recorded})"
    return (
        "INSERT INTO processor.dead_letter (id, hash, buffer, lane, entry, keys, body, reason,"
        f" sqlstate, detail, attempts, holds, trace, version, texts) SELECT {values}{condition}"
        " ON CONFLICT (id, hash) DO NOTHING;"
    )


def open_requests(
    session: PostgresSession, buffer: str, lanes: Sequence[str], count: int
) -> list[DeadLetter]:
    """Return dead letters of these lanes with an open request, oldest request first.

    An idle owner also touches the server with this call (rule 4).
    """
    names = ",".join(quoted(lane) for lane in lanes)
    return _letters(
        session,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE buffer = '{buffer}'"
        f" AND lane = ANY (ARRAY[{names}]::text[]) AND request IS NOT NULL AND outcome = 'dead'"
        f" ORDER BY requested_at, id LIMIT {count}",
    )


def open_holds(
    session: PostgresSession, owner: Ownership, after: DeadLetter | None, count: int
) -> list[DeadLetter]:
    """Return dead letters of a lane that hold their keys, to rebuild the blocked keys.

    `after` is the last one of the previous page.
    """
    # An id can have several dead letters, of which a page may end in the middle.
    behind = "" if after is None else f" AND (id, hash) > ('{after.id}', '{after.hash}')"
    return _letters(
        session,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE buffer = '{owner.buffer}'"
        f" AND lane = {quoted(owner.lane)} AND outcome = 'dead' AND holds"
        f"{behind} ORDER BY id, hash LIMIT {count}",
    )


def holding(
    session: PostgresSession, owner: Ownership, keys: Sequence[str]
) -> list[tuple[str, str]]:
    """Return which of these keys the dead letters of a lane hold: pairs of key and entry id."""
    names = ",".join(_stored(key, session.encoding) for key in keys)
    rows = session.run(
        f"SELECT entry, keys, texts FROM processor.dead_letter WHERE buffer = '{owner.buffer}'"
        f" AND lane = {quoted(owner.lane)} AND outcome = 'dead' AND holds"
        f" AND keys OPERATOR(pg_catalog.&&) ARRAY[{names}]::text[]"
    )
    wanted = set(keys)
    return [
        (key, entry_id) for entry_id, stored, texts in rows
        for key in (stored_text.read(texts) or {"keys": stored})["keys"] if key in wanted
    ]  # fmt: skip


def resolve(letter: DeadLetter, outcome: str) -> str:
    """Return the update that closes a dead letter as applied or discarded.

    The statement raises PR002 if another buffer took the dead letter over.
    """
    return (
        f"WITH met AS (UPDATE processor.dead_letter SET outcome = '{outcome}', request = NULL,"
        f" resolved_at = pg_catalog.now() WHERE {_is(letter)} RETURNING 1)"
        " SELECT processor.expect_2((SELECT pg_catalog.count(*) FROM met), 1);"
    )


def failed_again(letter: DeadLetter, reason: Reason, encoding: str = "UTF8") -> str:
    """Return the update after a failed retry: the dead letter stays, with the new reason."""
    return (
        f"UPDATE processor.dead_letter SET request = NULL, attempts = attempts + 1,"
        f" reason = {_stored(reason.text, encoding)}, sqlstate = {quoted(reason.sqlstate)},"
        f" detail = {_stored(reason.detail, encoding)}, edited = NULL,"
        f" texts = {_exact(letter.keys, letter.trace, reason, encoding)} WHERE {_is(letter)};"
    )


def count_open(session: PostgresSession, buffer: str) -> int:
    """Return how many dead letters of a buffer wait for a decision."""
    rows = session.run(
        "SELECT pg_catalog.count(*) FROM processor.dead_letter"
        f" WHERE buffer = '{buffer}' AND outcome = 'dead'"
    )
    return int(rows[0][0])


def open_elsewhere(session: PostgresSession, buffer: str) -> list[tuple[str, int]]:
    """Return the other buffers whose dead letters wait for a decision, with how many."""
    return [(row[0], row[1]) for row in session.run(
        "SELECT buffer::text, pg_catalog.count(*) FROM processor.dead_letter"
        f" WHERE outcome = 'dead' AND buffer <> '{buffer}' GROUP BY 1 ORDER BY 2 DESC, 1"
    )]  # fmt: skip


def listed(
    session: PostgresSession, *, lane: str | None = None, sqlstate: str | None = None,
    since: datetime.datetime | None = None, everything: bool = False, buffer: str | None = None,
    limit: int = 100, after: DeadLetter | None = None,
) -> list[DeadLetter]:  # fmt: skip
    """Return a page of dead letters, oldest first; `after` is the last one of the previous page.

    `sqlstate` may be a class, which is the first two characters. `everything` includes those that
    were applied or discarded.
    """
    conditions = _conditions(lane, sqlstate, since, everything, buffer)
    if after is not None:
        conditions += (
            f" AND (died_at, id, hash) > ('{after.died_at.isoformat()}', '{after.id}',"
            f" '{after.hash}')"
        )
    return _letters(
        session,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE {conditions}"
        f" ORDER BY died_at, id, hash LIMIT {limit}",
    )


def count_listed(
    session: PostgresSession, *, lane: str | None = None, sqlstate: str | None = None,
    since: datetime.datetime | None = None, everything: bool = False, buffer: str | None = None,
) -> int:  # fmt: skip
    """Return how many dead letters all pages of `listed` have together."""
    conditions = _conditions(lane, sqlstate, since, everything, buffer)
    rows = session.run(f"SELECT pg_catalog.count(*) FROM processor.dead_letter WHERE {conditions}")
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
        conditions.append(f"pg_catalog.starts_with(sqlstate, {quoted(sqlstate)})")
    if since is not None:
        conditions.append(f"died_at >= {quoted(since.isoformat())}")
    return " AND ".join(conditions)


def find(session: PostgresSession, transaction_id: str) -> list[DeadLetter]:
    """Return the dead letters of an id: several if it was used for several payloads."""
    identity = canonical_id("id", transaction_id)
    return _letters(
        session,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE id = '{identity}'"
        " ORDER BY died_at, hash",
    )


def of_entry(session: PostgresSession, lane: str, entry_id: str) -> list[DeadLetter]:
    """Return the open dead letters of an entry.

    A transaction that repeats a dead letter of release 0.1 is dead without one of its own; its row
    in the ledger names the entry (rule 96).
    """
    return _letters(
        session,
        f"SELECT {_COLUMNS} FROM processor.dead_letter WHERE outcome = 'dead'"
        f" AND lane = {quoted(lane)} AND entry = {quoted(entry_id)}",
    )


def record_request(
    session: PostgresSession, letter: DeadLetter, verb: str, edited: bytes | None = None, *,
    version: bytes = b"1", buffer: str | None = None,
) -> bool:  # fmt: skip
    """Record an operator's request: retry, edit or discard. False if it was decided already.

    `version` is that of the envelope of an `edited` body. If the dead letter belongs to another
    buffer than `buffer`, that one takes it over and counts it.
    """
    taker = buffer or letter.buffer
    text = "NULL" if edited is None else f"'\\x{edited.hex()}'"
    update = (
        f"UPDATE processor.dead_letter SET request = {quoted(verb)},"
        f" requested_at = pg_catalog.now(),"
        f" requested_by = {_stored(_operator(), session.encoding)},"
        f" edited = {text}, version = greatest(version, {int(version)}), buffer = '{taker}'"
        f" WHERE {_is(letter)} AND outcome = 'dead' RETURNING lane"
    )
    if taker != letter.buffer:
        update = (
            f"WITH taken AS ({update}), counted AS (INSERT INTO processor.lane (buffer, lane, dead)"
            f" SELECT '{taker}'::uuid, lane, 1 FROM taken"
            " ON CONFLICT (buffer, lane) DO UPDATE SET dead = lane.dead + 1)"
            " SELECT lane FROM taken"
        )
    return bool(session.run(update))


def is_decided(session: PostgresSession, letter: DeadLetter) -> bool:
    """Return whether a dead letter has been applied or discarded by now."""
    return any(
        now.hash == letter.hash and now.outcome != "dead" for now in find(session, letter.id)
    )


def _letters(session: PostgresSession, sql: str) -> list[DeadLetter]:
    return [_letter(row) for row in session.run(sql)]


def _letter(row: Row) -> DeadLetter:
    fields = list(row)
    fields[5] = tuple(fields[5])
    fields[6] = bytes(fields[6])
    fields[15] = None if fields[15] is None else bytes(fields[15])
    exact = stored_text.read(fields.pop())
    letter = DeadLetter(*fields)
    return replace(letter, **exact | {"keys": tuple(exact["keys"])}) if exact else letter


def _stored(text: str, encoding: str) -> str:
    return quoted(stored_text.escaped(text, encoding))


def _exact(keys: Sequence[str], trace: str | None, reason: Reason, encoding: str) -> str:
    texts = {"keys": keys, "trace": trace, "reason": reason.text, "detail": reason.detail}
    return stored_text.exact(texts, encoding)


def _is(letter: DeadLetter) -> str:
    # With the buffer: a dead letter that another buffer took over is for that one's owner.
    return f"id = '{letter.id}' AND hash = '{letter.hash}' AND buffer = '{letter.buffer}'"


def _operator() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
