"""`doctor`, replicas: whether each can be followed and read from, and whether `settle` can wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from processor.cli.doctor.finding import FAIL, OK, WARN, Finding, remedy_for
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError, Unavailable

_LAG = 10.0

Open = Callable[[str], AbstractContextManager[PostgresSession]]


def examine(primary: PostgresSession, settings: Settings, opened: Open) -> Iterator[Finding]:
    """All checks of the replicas; `opened` opens a session that only reads on an address."""
    replicas = settings.replicas
    if not replicas.tracking:
        yield _finding("tracking", OK, "off: how far replicas are is not followed")
        return
    for name, dsn in replicas.servers.items():
        try:
            with opened(dsn) as database:
                yield _replica(name, database, primary.system)
        except (Unavailable, DatabaseError) as error:
            remedy = remedy_for(error, "replicas.servers")
            yield _finding(name, FAIL, str(error.args[0]), remedy)
    if not replicas.servers:
        yield from _streaming(primary, replicas.promotable)


def _replica(name: str, database: PostgresSession, system: str) -> Finding:
    if database.system != system:
        return _finding(name, FAIL, "a server of another cluster than the primary",
                        "give the address of a physical replica of database.dsn")
    readable, lag = database.run(
        "SELECT has_table_privilege('processor.lane', 'SELECT')"
        " AND has_table_privilege('processor.ledger', 'SELECT'),"
        " extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8"
    )[0]
    if not readable:
        return _finding(name, FAIL, "the role may not read processor.lane and processor.ledger",
                        "grant SELECT on both: by them a replica is judged")
    if database.timeline:
        return _finding(name, WARN, "it takes writes: it is a primary", "see replicas.servers")
    if lag is not None and lag > _LAG:
        return _finding(name, WARN, f"the last commit that it replayed is {lag:.0f} s old",
                        "nothing, if nothing was written since; else see its log")
    return _finding(name, OK, "a standby that can be followed and read from")


def _streaming(primary: PostgresSession, promotable: tuple[str, ...]) -> Iterator[Finding]:
    rows = primary.run("SELECT application_name, replay_lsn IS NOT NULL FROM pg_stat_replication")
    seen = {name for name, visible in rows if visible}
    if len(seen) < len(rows):
        yield _finding("pg_stat_replication", WARN, "the role may not see how far replicas are",
                       "grant pg_monitor, or name them in replicas.servers")
    else:
        told = f"{len(seen)} of them stream: {', '.join(sorted(seen))}" if seen else "none"
        yield _finding("pg_stat_replication", OK, told)
    for name in promotable:
        if name not in seen:
            yield _finding(name, FAIL, "does not stream from the primary under this name",
                           "set its application_name, or see replicas.promotable")


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("replicas", check, level, found, remedy)
