"""What a command works with: the settings, and connections for as long as it needs them.

Commands that talk to a server take a `OperatorSessions`; each `with` opens a connection and
closes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from typing import Any, TypeVar

import click

from processor.config import loader
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseError
from processor.ledger import schema
from processor.telemetry.progress import Progress

R = TypeVar("R")

#: An operator may think longer than a frozen owner is given, and holds no lane meanwhile.
_IDLE = 3600.0


class OperatorSessions:
    """Settings and servers of one call of the command line."""

    def __init__(self, source: str | None = None) -> None:
        self.source = source

    @cached_property
    def settings(self) -> Settings:
        """The settings, also for whoever asks `config.current`. Raises ConfigError."""
        return loader.configure(self.source)

    @contextmanager
    def redis(self) -> Iterator[RedisConnection]:
        """A connection to the buffer's Redis."""
        connection = RedisConnection(self.settings.redis.url, self.settings.redis.timeout)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def database(self) -> Iterator[PostgresSession]:
        """A session on PostgreSQL with the schema of this release. Raises what `schema.check` does.
        """
        with self.postgresql() as database:
            schema.check(database)
            try:
                yield database
            except DatabaseError as error:
                schema.refuse_rights(database, error)
                raise

    @contextmanager
    def postgresql(self, dsn: str | None = None) -> Iterator[PostgresSession]:
        """A session, whatever is there, of the configured role unless a `dsn` is given."""
        with self._session(dsn or self.settings.database.dsn, writes=True) as database:
            yield database

    @contextmanager
    def replica(self, dsn: str) -> Iterator[PostgresSession]:
        """A session that only reads, on any server."""
        with self._session(dsn, writes=False) as database:
            yield database

    @contextmanager
    def _session(self, dsn: str, *, writes: bool) -> Iterator[PostgresSession]:
        wanted = dataclasses.replace(self.settings.database, takeover=_IDLE, dsn=dsn)
        name = "processor command line"
        database = PostgresSession(wanted, Progress(), application=name, writes=writes)
        try:
            database.connect()
            yield database
        finally:
            database.close()


def with_servers(function: Callable[..., R]) -> Callable[..., R]:
    """Hand a command a `OperatorSessions` as its first argument."""

    def call(*arguments: Any, **named: Any) -> R:
        source = click.get_current_context().find_root().obj
        return function(OperatorSessions(source), *arguments, **named)

    return update_wrapper(call, function)
