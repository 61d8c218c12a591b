"""`processor verify`: whether Redis and PostgreSQL tell the same story, invariant by invariant.

It may run beside a processor at work: what two looks in a row find is a problem, what one finds is
work in hand. Nothing is changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from processor.admin import consistency, overview
from processor.admin.consistency import CHECKS, Problem
from processor.admin.overview import Overview
from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.cli.doctor import finding
from processor.cli.doctor.finding import FAIL, OK, WARN, Finding
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.transaction.ids import canonical_id

_BETWEEN = 2.0
_NAMED = 3


@click.command()
@output.json_option
@with_servers
def verify(servers: OperatorSessions, as_json: bool) -> int:
    """Compare Redis with PostgreSQL; exit 1 if an invariant does not hold."""
    with servers.redis() as redis, servers.database() as database:
        seen = overview.look(redis, servers.settings)
        told = overview.processors(redis, servers.settings)
        if seen.identity is None:
            return finding.show(_without_identity(database, servers.settings.site), as_json)
        problems = _lasting(redis, database, servers.settings, seen)
    owned = {name for each in told for name, lane in each["lanes"].items() if lane["owner"]}
    return finding.show(_findings(problems, owned), as_json)


def _lasting(
    redis: RedisConnection, database: PostgresSession, settings: Settings, seen: Overview
) -> set[Problem]:
    identity, lanes = canonical_id("identity of the buffer", seen.identity), list(seen.lanes)
    first = set(consistency.look(redis, database, settings, identity, lanes))
    if not first:
        return first
    time.sleep(_BETWEEN)
    return first & set(consistency.look(redis, database, settings, identity, lanes))


def _findings(problems: set[Problem], owned: set[str]) -> Iterator[Finding]:
    for check, (holds, remedy) in CHECKS.items():
        found = sorted((p for p in problems if p.check == check), key=lambda p: (p.lane, p.id))
        if not found:
            yield Finding("verify", check, OK, holds)
            continue
        # Left by a processor that was stopped between commit and settling: whoever comes, settles.
        idle = check == "settled" and not owned & {problem.lane for problem in found}
        names = ", ".join(f"{each.lane} {each.id}" for each in found[:_NAMED])
        more = ", ..." if len(found) > _NAMED else ""
        text = f"not so for {len(found)}: {names}{more}"
        yield Finding("verify", check, WARN if idle else FAIL, text, remedy)


def _without_identity(database: PostgresSession, site: str) -> Iterator[Finding]:
    """An empty Redis: new, or one that has lost everything."""
    rows = database.run("SELECT site, buffer::text FROM processor.lane ORDER BY seen_at DESC")
    known = next((buffer for name, buffer in rows if name == site), None)
    if known is None:
        yield Finding("verify", "buffer", OK, "nothing was ever submitted here")
        return
    yield Finding("verify", "buffer", FAIL, f"Redis knows no buffer, and this site had {known}",
                  "Redis lost its data, or redis.url or namespace names another one")
