"""Checks of replicas: each must be usable for following and reading, `settle` needs its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from processor.admin.findings import FAIL, OK, WARN, Finding, remedy_for
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError, Unavailable

#: Seconds of lag above which there is a warning.
_LAG = 10.0

Open = Callable[[str], AbstractContextManager[PostgresSession]]


def examine(primary: PostgresSession, settings: Settings, connect: Open) -> Iterator[Finding]:
    """All checks of the replicas; `connect` opens a read-only session on a DSN."""
    replicas = settings.replicas
    if not replicas.tracking:
        yield _finding("tracking", OK, "off: the progress of replicas is not followed")
        return
    for name, dsn in replicas.servers.items():
        try:
            with connect(dsn) as database:
                yield _replica(name, database, primary.system)
        except (Unavailable, DatabaseError) as error:
            remedy = remedy_for(error, "replicas.servers")
            yield _finding(name, FAIL, str(error.args[0]), remedy)
    if not replicas.servers:
        yield from _streaming(primary, replicas.promotable)


def _replica(name: str, database: PostgresSession, system: str) -> Finding:
    if database.system != system:
        return _finding(name, FAIL, "belongs to another cluster than the primary",
                        "give the address of a physical replica of database.dsn")
    readable, lag = database.run(
        "SELECT pg_catalog.has_table_privilege('processor.lane', 'SELECT')"
        " AND pg_catalog.has_table_privilege('processor.ledger', 'SELECT'),"
        " extract(epoch FROM pg_catalog.now() - pg_catalog.pg_last_xact_replay_timestamp())::float8"
    )[0]
    if not readable:
        return _finding(name, FAIL, "the role may not read processor.lane and processor.ledger",
                        "grant SELECT on both: they show which commits a replica has")
    if database.timeline:
        return _finding(name, WARN, "accepts writes: it is a primary", "check replicas.servers")
    if lag is not None and lag > _LAG:
        return _finding(name, WARN, f"the last commit that it replayed is {lag:.0f} s old",
                        "see its log, unless nothing was written since")
    return _finding(name, OK, "a standby that can be followed and read")


def _streaming(primary: PostgresSession, promotable: tuple[str, ...]) -> Iterator[Finding]:
    rows = primary.run(
        "SELECT application_name, replay_lsn IS NOT NULL FROM pg_catalog.pg_stat_replication"
    )
    names = {name for name, visible in rows if visible}
    if len(names) < len(rows):
        yield _finding("pg_stat_replication", WARN, "the role may not read replicas' progress",
                       "grant pg_monitor, or list them in replicas.servers")
    else:
        text = f"{len(names)} streaming: {', '.join(sorted(names))}" if names else "none streaming"
        yield _finding("pg_stat_replication", OK, text)
    for name in promotable:
        if name not in names:
            yield _finding(name, FAIL, "does not stream from the primary under this name",
                           "set its application_name, or check replicas.promotable")


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("replicas", check, level, found, remedy)
