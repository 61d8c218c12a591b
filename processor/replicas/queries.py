"""The SQL that asks servers how far replicas have replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from processor.connections.sql_literals import quoted
from processor.connections.wal_position import Position, format_lsn

#: From this server version a standby has `WAIT FOR LSN`.
WAIT_VERSION = 190000


def replayed(tokens: Iterable[str]) -> str:
    """Ask a server for its replay LSN, its start time, and the rows of these lanes it shows.

    The start time tells servers with one name apart: all replicas have the same system identifier,
    but an older copy that takes a replica's place was started later.
    """
    wanted = ",".join(tokens)
    return (
        "SELECT pg_catalog.pg_last_wal_replay_lsn()::text,"
        " extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text,"
        " (SELECT pg_catalog.jsonb_object_agg(token, xmin::text)"
        f" FROM processor.lane WHERE token = ANY ('{{{wanted}}}'::uuid[]))"
    )


def lane_rows(shown: Mapping[str, str] | None) -> list[tuple[str, int]]:
    """Return the tokens and transaction ids (xmin) in the answer to `replayed`."""
    return [(token, int(xmin)) for token, xmin in (shown or {}).items()]


#: Ask the primary how far the replicas are that stream from it. Their positions are on its own
#: timeline. A replica is known by its connection: a new connection may be that of an older copy.
#: A role without pg_monitor sees that there are replicas, but not their positions. Logical
#: subscribers stream as well, and are not replicas.
STREAMING_REPLICAS = (
    "SELECT application_name, pg_catalog.min(replay_lsn)::text,"
    " extract(epoch FROM pg_catalog.max(backend_start))::text,"
    " pg_catalog.\"left\"(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)"
    " FROM pg_catalog.pg_stat_replication r WHERE NOT EXISTS"
    " (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid"
    " AND s.slot_type = 'logical') GROUP BY application_name"
)


def wait_for_lsn(position: Position, seconds: float) -> str:
    """Wait on a standby until it has replayed a position, at most `seconds` (PostgreSQL 19).

    The answer ignores timelines, so it proves nothing; it only says when to ask again.
    """
    lsn = quoted(format_lsn(position.lsn))
    return f"WAIT FOR LSN {lsn} WITH (TIMEOUT '{max(1, int(seconds * 1000))}ms', NO_THROW)"
