"""Ledger rows: the id and outcome of every transaction, as SQL that `apply` sends.

The functions that write return SQL text, so that an outcome and its effect are in one commit. The
insert fails on an id that the ledger already has (rule 14).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.ledger.lane_rows import Ownership
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id

PREPARED = (
    "PREPARE processor_ledger (uuid[], text[], uuid[], uuid, text, text) AS"
    " INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
    " SELECT i, e, h, $4, $5, $6 FROM unnest($1, $2, $3) AS u (i, e, h);"
)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Everything that the ledger records of one transaction, for people."""

    outcome: str
    buffer: str
    lane: str
    entry_id: str
    hash: str
    committed_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """The outcome that the ledger has for an id, and the hash of the payload it belongs to."""

    outcome: str
    hash: str


def insert(
    owner: Ownership, entries: Sequence[Entry], outcome: str = "applied", *, prepared: bool = False
) -> str:
    """Return the insert of these ids with their outcome; it fails on a known id (rules 14, 15)."""
    ids = ",".join(e.id for e in entries)
    entry_ids = ",".join(e.entry_id for e in entries)
    hashes = ",".join(e.hash for e in entries)
    lane = quoted(owner.lane)
    if prepared:
        return (
            f"EXECUTE processor_ledger('{{{ids}}}','{{{entry_ids}}}','{{{hashes}}}',"
            f"'{owner.buffer}',{lane},'{outcome}');"
        )
    return (
        "INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
        f" SELECT i, e, h, '{owner.buffer}', {lane}, '{outcome}'"
        f" FROM unnest('{{{ids}}}'::uuid[], '{{{entry_ids}}}'::text[], '{{{hashes}}}'::uuid[])"
        " AS u (i, e, h);"
    )


def insert_dead(owner: Ownership, entries: Sequence[Entry]) -> str:
    """Return the insert of ids as dead; an id that has an outcome keeps it.

    Skipping known ids is safe here, because no effect follows in the same commit (rule 14).
    """
    return insert(owner, entries, "dead").rstrip(";") + " ON CONFLICT (id) DO NOTHING;"


def find(session: PostgresSession, ids: Sequence[str]) -> dict[str, Recorded]:
    """Return what the ledger has for these ids. The session must be in no transaction."""
    if not ids:
        return {}
    ids = [canonical_id("id", i) for i in ids]
    rows = session.run(
        "SELECT id::text, outcome, pg_catalog.replace(hash::text, '-', '') FROM processor.ledger"
        f" WHERE id = ANY ('{{{','.join(ids)}}}'::uuid[])"
    )
    return {row[0]: Recorded(row[1], row[2]) for row in rows}


def row(session: PostgresSession, transaction_id: str) -> LedgerRow | None:
    """Return the ledger's row of one transaction, or None if it has none."""
    rows = session.run(
        "SELECT outcome, buffer::text, lane, entry, pg_catalog.replace(hash::text, '-', ''),"
        " committed_at"
        f" FROM processor.ledger WHERE id = '{canonical_id('id', transaction_id)}'"
    )
    return LedgerRow(*rows[0]) if rows else None


def resolve(
    owner: Ownership, dead: str, dead_hash: str, outcome: str, payload_hash: str
) -> str:
    """Return the update that turns the outcome `dead` into applied or discarded (rule 15).

    The row then belongs to the owner's buffer, also if it belonged to a buffer that no longer
    exists. The statement raises PR002 if the id has another outcome or another payload.
    """
    return (
        f"WITH met AS (UPDATE processor.ledger SET outcome = '{outcome}', hash = '{payload_hash}',"
        f" buffer = '{owner.buffer}', xid = pg_catalog.pg_current_xact_id(),"
        " committed_at = pg_catalog.now()"
        f" WHERE id = '{dead}' AND hash = '{dead_hash}' AND outcome = 'dead' RETURNING 1)"
        " SELECT processor.expect_2((SELECT pg_catalog.count(*) FROM met), 1);"
    )


def prunable(
    session: PostgresSession, owner: Ownership, retention: float, oldest: int, count: int
) -> list[tuple[str, int]]:
    """Return up to `count` ids of this lane, with accept times (ms), that may be pruned (rule 23).

    They are older than `retention` (seconds) and settled: accepted before `oldest`, the accept time
    (ms) of the oldest entry in the stream.
    """
    return [(row[0], row[1]) for row in session.run(
        "SELECT id::text, pg_catalog.split_part(entry, '-', 1)::bigint FROM processor.ledger"
        f" WHERE buffer = '{owner.buffer}'"
        f" AND lane = {quoted(owner.lane)} AND outcome <> 'dead'"
        f" AND committed_at < pg_catalog.now() - interval '{retention} seconds'"
        f" AND pg_catalog.split_part(entry, '-', 1)::bigint < {oldest} LIMIT {count}"
    )]  # fmt: skip


def prune(owner: Ownership, ids: Sequence[str]) -> str:
    """Return the delete of these rows, which records the highest accept time removed (rule 23)."""
    return (
        "WITH gone AS (DELETE FROM processor.ledger"
        f" WHERE id = ANY ('{{{','.join(ids)}}}'::uuid[]) RETURNING entry)"
        " UPDATE processor.lane SET pruned_to = greatest(pruned_to, (SELECT"
        " pg_catalog.to_timestamp(pg_catalog.max(pg_catalog.split_part(entry, '-', 1)::bigint)"
        " OPERATOR(pg_catalog./) 1000.0) FROM gone))"
        f" WHERE buffer = '{owner.buffer}' AND lane = {quoted(owner.lane)}"
    )
