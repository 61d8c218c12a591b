"""`processor doctor`: servers, role, clocks and host examined, a line a check, each with a remedy.

A server that is away is one failed line, and the others are examined all the same. The last lines
are the checklist before production, judged by what was found.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from processor.admin import overview
from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.cli.doctor import (
    checklist,
    finding,
    host,
    postgres,
    replicas,
)
from processor.cli.doctor import (
    redis as examine_redis,
)
from processor.cli.doctor.finding import FAIL, Finding
from processor.errors import DatabaseError, RedisRefused, Unavailable


@click.command()
@output.json_option
@with_servers
def doctor(servers: OperatorSessions, as_json: bool) -> int:
    """Examine servers, role and host; exit 1 if a check fails, 69 if a server is away."""
    examination = Examination(servers)
    code = finding.show(examination.run(), as_json)
    return output.UNAVAILABLE if examination.away else code


class Examination:
    """One examination, which remembers what it found for the checklist."""

    def __init__(self, servers: OperatorSessions) -> None:
        self._servers = servers
        self._settings = servers.settings
        self._found: list[Finding] = []
        self._identity: str | None = None
        self._average: float | None = None
        self.away = False

    def run(self) -> Iterator[Finding]:
        """All findings, as they are made."""
        for part in (self._host, self._redis, self._postgres, self._checklist):
            for each in part():
                self._found.append(each)
                yield each

    def _host(self) -> Iterator[Finding]:
        yield from host.settings_and_program(self._settings, self._servers.source)

    def _redis(self) -> Iterator[Finding]:
        settings = self._settings
        try:
            with self._servers.redis() as redis:
                seen = overview.look(redis, settings)
                self._identity = seen.identity
                yield from examine_redis.examine(redis, settings, seen)
                yield host.clock("Redis", lambda: overview.clock(redis))
                self._average = checklist.average_size(redis, settings.namespace, list(seen.lanes))
                yield from host.processors(settings, overview.processors(redis, settings))
        except (Unavailable, RedisRefused) as error:
            self.away = True
            remedy = finding.remedy_for(error, "redis.url")
            yield Finding("redis", "server", FAIL, str(error.args[0]), remedy)

    def _postgres(self) -> Iterator[Finding]:
        try:
            with self._servers.postgresql() as database:
                yield from postgres.examine(database, self._settings, self._identity)
                yield host.clock("PostgreSQL", lambda: postgres.clock(database))
                yield from replicas.examine(
                    database, self._settings, self._servers.replica
                )
        except Unavailable as error:
            self.away = True
            remedy = finding.remedy_for(error, "database.dsn")
            yield Finding("postgresql", "server", FAIL, str(error.args[0]), remedy)
        except DatabaseError as error:
            yield Finding("postgresql", "examination", FAIL, f"ended early: {error}",
                          "see the log of PostgreSQL for what it refused, and grant it")

    def _checklist(self) -> Iterator[Finding]:
        yield from checklist.go_through(self._settings, self._found, self._average)
