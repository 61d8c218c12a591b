"""Connections for an operator's questions, each open only as long as its `with` block.

The functions of `admin` take an `OperatorSessions`, or a connection that one of these opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseError
from processor.ledger import schema
from processor.telemetry.progress import Progress

#: Seconds. An operator owns no lane, and may think longer than a frozen owner is allowed to idle.
_IDLE = 3600.0


class OperatorSessions:
    """Opens the servers that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

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
        """A session on PostgreSQL that can use our schema. Raises what `schema.check` raises.

        A statement that fails because the role lacks privileges raises RightsMissing.
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
        """A session that does not require our schema, on `dsn` or as database.dsn says."""
        with self._session(dsn or self.settings.database.dsn, writes=True) as database:
            yield database

    @contextmanager
    def replica(self, dsn: str) -> Iterator[PostgresSession]:
        """A read-only session on any server."""
        with self._session(dsn, writes=False) as database:
            yield database

    @contextmanager
    def _session(self, dsn: str, *, writes: bool) -> Iterator[PostgresSession]:
        options = dataclasses.replace(self.settings.database, takeover=_IDLE, dsn=dsn)
        name = "processor command line"
        database = PostgresSession(options, Progress(), application=name, writes=writes)
        try:
            database.connect()
            yield database
        finally:
            database.close()
