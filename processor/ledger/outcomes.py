"""Ledger rows: the id and outcome of every transaction, as SQL that `apply` sends.

The functions that write return SQL text, so that an outcome and its effect are in one commit. The
insert fails on an id that the ledger already has (rule 14).

A transaction with an idempotency key has a second row, under the id that release 0.1 gives it: its
`former` id. So one effect is left of what a producer of either release submits (rule 96). Both rows
have the same xid and entry. They go when this release no longer runs beside 0.1.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.ledger.lane_rows import Ownership
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id, id_in

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
    """The outcome that the ledger has for an id, and the hash of the payload it belongs to.

    `former`: it has it under the former id only.
    """

    outcome: str
    hash: str
    former: bool = False


def insert(
    owner: Ownership, entries: Sequence[Entry], outcome: str = "applied", *, prepared: bool = False
) -> str:
    """Return the insert of these ids with their outcome; it fails on a known id (rules 14, 15).

    What is applied is inserted under its former id, too.
    """
    former = "" if outcome != "applied" else insert_former(owner, entries)
    ids = ",".join(e.id for e in entries)
    entry_ids = ",".join(e.entry_id for e in entries)
    hashes = ",".join(e.hash for e in entries)
    lane = quoted(owner.lane)
    if prepared:
        return (
            f"EXECUTE processor_ledger('{{{ids}}}','{{{entry_ids}}}','{{{hashes}}}',"
            f"'{owner.buffer}',{lane},'{outcome}');{former}"
        )
    return (
        "INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
        f" SELECT i, e, h, '{owner.buffer}', {lane}, '{outcome}'"
        f" FROM unnest('{{{ids}}}'::uuid[], '{{{entry_ids}}}'::text[], '{{{hashes}}}'::uuid[])"
        f" AS u (i, e, h);{former}"
    )


def _with_former(entries: Sequence[Entry]) -> list[Entry]:
    return [e for e in entries if e.former is not None]


def insert_former(owner: Ownership, entries: Sequence[Entry]) -> str:
    """Return the insert of former ids as applied; it fails on one that this namespace has.

    An id that another namespace has is left to it.
    """
    entries = _with_former(entries)
    if not entries:
        return ""
    ids = ",".join(e.former or "" for e in entries)
    entry_ids = ",".join(e.entry_id for e in entries)
    hashes = ",".join(e.hash for e in entries)
    return (
        "INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
        f" SELECT f, e, h, '{owner.buffer}', {quoted(owner.lane)}, 'applied'"
        f" FROM unnest('{{{ids}}}'::uuid[], '{{{entry_ids}}}'::text[], '{{{hashes}}}'::uuid[])"
        " AS u (f, e, h) WHERE NOT EXISTS (SELECT FROM processor.ledger AS l WHERE l.id = u.f"
        f" AND NOT {_is_ours(owner)});"
    )


def _is_ours(owner: Ownership) -> str:
    """Return the condition that a row `l` of the ledger belongs to the namespace of the owner."""
    return (
        f"(l.buffer = '{owner.buffer}' OR EXISTS (SELECT FROM processor.lane AS n"
        f" WHERE n.buffer = l.buffer AND n.namespace = {quoted(owner.namespace)}))"
    )


def remove_failed_former(entries: Sequence[Entry]) -> str:
    """Return the delete of former ids whose transactions failed within the same commit."""
    entries = _with_former(entries)
    if not entries:
        return ""
    former = ",".join(e.former or "" for e in entries)
    ids = ",".join(e.id for e in entries)
    return (
        "DELETE FROM processor.ledger AS l"
        f" USING unnest('{{{former}}}'::uuid[], '{{{ids}}}'::uuid[]) AS u (f, i)"
        " WHERE l.id = u.f AND l.xid = pg_catalog.pg_current_xact_id()"
        " AND NOT EXISTS (SELECT FROM processor.ledger AS n WHERE n.id = u.i);"
    )


def insert_known(entries: Sequence[Entry]) -> str:
    """Return the insert of entries that the ledger has under their former ids only."""
    former = ",".join(e.former or "" for e in entries)
    ids = ",".join(e.id for e in entries)
    return (
        "INSERT INTO processor.ledger (id, buffer, lane, entry, outcome, hash, xid, committed_at)"
        " SELECT u.i, l.buffer, l.lane, l.entry, l.outcome, l.hash, l.xid, l.committed_at"
        f" FROM unnest('{{{former}}}'::uuid[], '{{{ids}}}'::uuid[]) AS u (f, i)"
        " JOIN processor.ledger AS l ON l.id = u.f ON CONFLICT (id) DO NOTHING;"
    )


def insert_discarded_former(owner: Ownership, former: str, letter_hash: str, entry: str) -> str:
    """Return the insert of the former id of a discarded transaction, unless it has an outcome."""
    return (
        "INSERT INTO processor.ledger (id, entry, hash, buffer, lane, outcome)"
        f" VALUES ('{former}', {quoted(entry)}, '{letter_hash}', '{owner.buffer}',"
        f" {quoted(owner.lane)}, 'discarded') ON CONFLICT (id) DO NOTHING;"
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


def find_entries(
    session: PostgresSession, owner: Ownership, entries: Sequence[Entry]
) -> dict[str, Recorded]:
    """Return what the ledger has for these entries, by id; also what it has by former id.

    The session must be in no transaction.
    """
    found = find(session, [e.id for e in entries])
    others = [e for e in _with_former(entries) if e.id not in found]
    if not others:
        return found
    former = find_former(session, owner, [e.former or "" for e in others])
    return found | {e.id: former[e.former] for e in others if e.former in former}


def find_former(
    session: PostgresSession, owner: Ownership, ids: Sequence[str]
) -> dict[str, Recorded]:
    """Return what the ledger has for these former ids in the namespace of the owner."""
    rows = session.run(
        "SELECT id::text, outcome, pg_catalog.replace(hash::text, '-', '')"
        f" FROM processor.ledger AS l WHERE id = ANY ('{{{','.join(ids)}}}'::uuid[])"
        f" AND {_is_ours(owner)}"
    )
    return {row[0]: Recorded(row[1], row[2], former=True) for row in rows}


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
    """Return the updates that turn the outcome `dead` into applied or discarded (rule 15).

    The row then belongs to the owner's buffer, also if it belonged to a buffer that no longer
    exists. The statement raises PR002 if the id has another outcome or another payload.
    """
    return (
        f"WITH met AS (UPDATE processor.ledger SET outcome = '{outcome}', hash = '{payload_hash}',"
        f" buffer = '{owner.buffer}', xid = pg_catalog.pg_current_xact_id(),"
        " committed_at = pg_catalog.now()"
        f" WHERE id = '{dead}' AND hash = '{dead_hash}' AND outcome = 'dead' RETURNING 1)"
        " SELECT processor.expect_2((SELECT pg_catalog.count(*) FROM met), 1);"
        # What was submitted again with the key of a dead letter of release 0.1 shares its outcome.
        f"UPDATE processor.ledger AS l SET outcome = '{outcome}', hash = '{payload_hash}',"
        f" buffer = d.buffer, xid = d.xid, committed_at = d.committed_at FROM processor.ledger AS d"
        f" WHERE l.id = '{id_in(owner.namespace, dead)}' AND l.outcome = 'dead'"
        f" AND d.id = '{dead}' AND l.lane = d.lane AND l.entry = d.entry;"
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
