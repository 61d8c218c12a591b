"""The ledger of ids and outcomes, and the lane's epoch: SQL that `apply` sends.

Stores say SQL: everything here but the acquisition of a lane returns text, so that an outcome and
its effect are in one commit. The insert fails on a known id (rule 14).
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id

PREPARED = (
    "PREPARE processor_ledger (uuid[], text[], uuid[], uuid, text, text) AS"
    " INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
    " SELECT i, e, h, $4, $5, $6 FROM unnest($1, $2, $3) AS u (i, e, h);"
)


@dataclass(frozen=True, slots=True)
class Ownership:
    """The right to write for a lane: its epoch and token in PostgreSQL (rule 2)."""

    buffer: str
    lane: str
    epoch: int
    token: str


@dataclass(frozen=True, slots=True)
class Row:
    """All that the ledger says of one transaction, for people."""

    outcome: str
    buffer: str
    lane: str
    entry_id: str
    hash: str
    committed_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of an id."""

    outcome: str
    hash: str


def lock_key(namespace: str, buffer: str, lane: str) -> int:
    """The advisory lock of a lane: first 8 bytes of SHA-256, as a signed number (rule 2)."""
    text = "\0".join(("processor", namespace, buffer, lane))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)


def is_drained(database: PostgresSession, namespace: str, buffer: str) -> bool:
    """Whether a processor with this namespace owns a lane of a buffer at this moment."""
    lanes = database.run(f"SELECT lane FROM processor.lane WHERE buffer = '{buffer}'")
    keys = ",".join(str(lock_key(namespace, buffer, lane)) for (lane,) in lanes)
    return bool(database.run(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = pg_locks.database"
        " WHERE locktype = 'advisory' AND objsubid = 1 AND datname = current_database()"
        f" AND classid::bigint << 32 | objid::bigint = ANY ('{{{keys}}}'::bigint[]))"
    )[0][0])  # fmt: skip


def acquire(
    database: PostgresSession, namespace: str, buffer: str, lane: str, *, site: str, instance: str
) -> Ownership | None:
    """Take a lane if nobody has it: advisory lock, then epoch and token under it.

    The bump waits for the row, so when it returns every older batch is decided (rule 3). None if
    another session holds the lock.
    """
    key = lock_key(namespace, buffer, lane)
    if not database.run(f"SELECT pg_try_advisory_lock({key})")[0][0]:
        return None
    token = str(uuid.uuid4())
    name, where, who = quoted(lane), quoted(site), quoted(instance)
    try:
        rows = database.run(
            "INSERT INTO processor.lane (buffer, lane, site, instance, epoch, token)"
            f" VALUES ('{buffer}', {name}, {where}, {who}, 1, '{token}')"
            " ON CONFLICT (buffer, lane) DO UPDATE SET epoch = lane.epoch + 1,"
            " token = excluded.token, site = excluded.site, instance = excluded.instance,"
            " seen_at = clock_timestamp() RETURNING epoch"
        )
    except DatabaseError:
        # The old owner's batch still holds the row: leave the lock to a later try.
        database.run(f"ROLLBACK; SELECT pg_advisory_unlock({key})")
        raise
    return Ownership(buffer, lane, int(rows[0][0]), token)


def give_up(database: PostgresSession, namespace: str, buffer: str, lane: str) -> None:
    """Let another processor have the lane at once."""
    database.run(f"SELECT pg_advisory_unlock({lock_key(namespace, buffer, lane)})")


def fence(owner: Ownership, applied: int, dead: int = 0, last: str | None = None) -> str:
    """The first statement of every batch: lock the lane's row, compare epoch and token (rule 3).

    The row then carries the batch's transaction id, which is noted for `marks`.
    """
    return (
        f"SELECT processor.fence('{owner.buffer}', {quoted(owner.lane)}, {owner.epoch},"
        f" '{owner.token}', {applied}, {dead}, {'NULL' if last is None else quoted(last)}),"
        " set_config('processor.xid', pg_current_xact_id()::text, false);"
    )


def insert(
    owner: Ownership, entries: Sequence[Entry], outcome: str = "applied", *, prepared: bool = False
) -> str:
    """Write the ids with their outcome; fails on a known one (rules 14 and 15)."""
    ids = ",".join(e.id for e in entries)
    marks = ",".join(e.entry_id for e in entries)
    hashes = ",".join(e.hash for e in entries)
    lane = quoted(owner.lane)
    if prepared:
        return (
            f"EXECUTE processor_ledger('{{{ids}}}','{{{marks}}}','{{{hashes}}}',"
            f"'{owner.buffer}',{lane},'{outcome}');"
        )
    return (
        "INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
        f" SELECT i, e, h, '{owner.buffer}', {lane}, '{outcome}'"
        f" FROM unnest('{{{ids}}}'::uuid[], '{{{marks}}}'::text[], '{{{hashes}}}'::uuid[])"
        " AS u (i, e, h);"
    )


def insert_dead(owner: Ownership, entries: Sequence[Entry]) -> str:
    """Write ids as dead, unless they have an outcome already; no effect stands behind it."""
    return insert(owner, entries, "dead").rstrip(";") + " ON CONFLICT (id) DO NOTHING;"


def find(database: PostgresSession, ids: Sequence[str]) -> dict[str, Known]:
    """What the ledger knows of these ids, on a session that is in no transaction."""
    if not ids:
        return {}
    ids = [canonical_id("id", i) for i in ids]
    rows = database.run(
        "SELECT id::text, outcome, replace(hash::text, '-', '') FROM processor.ledger"
        f" WHERE id = ANY ('{{{','.join(ids)}}}'::uuid[])"
    )
    return {row[0]: Known(row[1], row[2]) for row in rows}


def row(database: PostgresSession, transaction_id: str) -> Row | None:
    """The row of one transaction."""
    rows = database.run(
        "SELECT outcome, buffer::text, lane, entry, replace(hash::text, '-', ''), committed_at"
        f" FROM processor.ledger WHERE id = '{canonical_id('id', transaction_id)}'"
    )
    return Row(*rows[0]) if rows else None


def resolve(
    owner: Ownership, dead: str, dead_hash: str, outcome: str, payload_hash: str
) -> str:
    """Turn the outcome of a dead letter into applied or discarded (rule 15).

    It is then of the owner's buffer, also if another one had it that is gone. Raises PR002 if its
    id has another outcome, or belongs to another payload.
    """
    return (
        f"WITH met AS (UPDATE processor.ledger SET outcome = '{outcome}', hash = '{payload_hash}',"
        f" buffer = '{owner.buffer}', xid = pg_current_xact_id(), committed_at = now()"
        f" WHERE id = '{dead}' AND hash = '{dead_hash}' AND outcome = 'dead' RETURNING 1)"
        " SELECT processor.expect((SELECT count(*) FROM met), 1);"
    )


def old(
    database: PostgresSession, owner: Ownership, retention: float, oldest: int, count: int
) -> list[tuple[str, int]]:
    """Ids and accept times of this lane older than the retention (seconds) and settled (rule 23).

    `oldest` is the accept time (ms) of the oldest entry in the stream: what came before is settled.
    """
    return [(row[0], row[1]) for row in database.run(
        "SELECT id::text, split_part(entry, '-', 1)::bigint FROM processor.ledger"
        f" WHERE buffer = '{owner.buffer}'"
        f" AND lane = {quoted(owner.lane)} AND outcome <> 'dead'"
        f" AND committed_at < now() - interval '{retention} seconds'"
        f" AND split_part(entry, '-', 1)::bigint < {oldest} LIMIT {count}"
    )]  # fmt: skip


def prune(owner: Ownership, ids: Sequence[str]) -> str:
    """Remove rows and remember the highest accept time that was ever removed (rule 23)."""
    return (
        "WITH gone AS (DELETE FROM processor.ledger"
        f" WHERE id = ANY ('{{{','.join(ids)}}}'::uuid[]) RETURNING entry)"
        " UPDATE processor.lane SET pruned_to = greatest(pruned_to,"
        " (SELECT to_timestamp(max(split_part(entry, '-', 1)::bigint) / 1000.0) FROM gone))"
        f" WHERE buffer = '{owner.buffer}' AND lane = {quoted(owner.lane)}"
    )
