"""`processor doctor`: checks servers, role, clocks and host, with a remedy for each problem.

An unavailable server is one failed check, and the others are checked all the same. The last lines
are a checklist before production, judged by the findings before them.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from processor.admin import overview
from processor.admin.findings import FAIL, Finding, remedy_for
from processor.admin.sessions import OperatorSessions
from processor.buffer import observation
from processor.cli import findings, output
from processor.cli.config_option import settings_file
from processor.cli.doctor import checklist, host, postgres, redis, replicas
from processor.cli.options import with_sessions
from processor.errors import DatabaseError, RedisRefused, Unavailable


@click.command()
@output.json_option
@with_sessions
def doctor(sessions: OperatorSessions, as_json: bool) -> int:
    """Check servers, role and host, and go through a checklist for production.

    The exit code is 1 if a check fails, and 69 if a server is unavailable.
    """
    examination = Examination(sessions, settings_file(click.get_current_context()))
    code = findings.show(examination.run(), as_json)
    return output.UNAVAILABLE if examination.unavailable else code


class Examination:
    """Runs all checks, and keeps their findings for the checklist."""

    def __init__(self, sessions: OperatorSessions, source: str | None) -> None:
        self._sessions = sessions
        self._settings = sessions.settings
        self._source = source
        self._found: list[Finding] = []
        self._identity: str | None = None
        self._average: float | None = None
        self.unavailable = False

    def run(self) -> Iterator[Finding]:
        """Run the checks one by one; yields each finding at once."""
        for part in (self._host, self._redis, self._postgres, self._checklist):
            for each in part():
                self._found.append(each)
                yield each

    def _host(self) -> Iterator[Finding]:
        yield from host.settings_and_program(self._settings, self._source)

    def _redis(self) -> Iterator[Finding]:
        settings = self._settings
        try:
            with self._sessions.redis() as connection:
                seen = observation.observe(connection, settings)
                self._identity = seen.identity
                yield from redis.examine(connection, settings, seen)
                yield host.clock("Redis", lambda: overview.clock(connection))
                self._average = checklist.average_size(
                    connection, settings.namespace, list(seen.lanes)
                )
                yield from host.processors(settings, overview.processors(connection, settings))
        except (Unavailable, RedisRefused) as error:
            self.unavailable = True
            remedy = remedy_for(error, "redis.url")
            yield Finding("redis", "server", FAIL, str(error.args[0]), remedy)

    def _postgres(self) -> Iterator[Finding]:
        try:
            with self._sessions.postgresql() as database:
                yield from postgres.examine(database, self._settings, self._identity)
                yield host.clock("PostgreSQL", lambda: postgres.clock(database))
                yield from replicas.examine(database, self._settings, self._sessions.replica)
        except Unavailable as error:
            self.unavailable = True
            remedy = remedy_for(error, "database.dsn")
            yield Finding("postgresql", "server", FAIL, str(error.args[0]), remedy)
        except DatabaseError as error:
            yield Finding("postgresql", "examination", FAIL, f"ended early: {error}",
                          "the log of PostgreSQL has the refused statement: grant its privilege")

    def _checklist(self) -> Iterator[Finding]:
        yield from checklist.go_through(self._settings, self._found, self._average)
