"""Questions about WAL positions that several packages ask over a session of their own.

Not in `replicas`: receipts and reads ask them as well, and siblings do not import each other.
"""

from __future__ import annotations

from processor.connections.postgres_session import PostgresSession
from processor.connections.wal_position import Position, after_commit, parse_lsn


def replayed_lsn(database: PostgresSession) -> int | None:
    """Return how far a standby has replayed; None on a server that never was in recovery.

    Raises DatabaseError and DatabaseUnavailable.
    """
    replayed = database.run("SELECT pg_catalog.pg_last_wal_replay_lsn()::text")[0][0]
    return parse_lsn(replayed) if replayed else None


def insert_position(database: PostgresSession) -> Position:
    """Return a position on the primary behind every commit that the session has seen.

    Rounded like a commit with `synchronous_commit = off`, because the caller does not know how
    those commits were made. Raises DatabaseError and DatabaseUnavailable.
    """
    insert = database.run("SELECT pg_catalog.pg_current_wal_insert_lsn()::text")[0][0]
    return Position(database.system, database.timeline, after_commit(insert, insert, "off"))
