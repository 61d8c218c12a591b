"""Redis and PostgreSQL in the directory of the project, with the database and our schema."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from processor.config.settings import Database as Settings
from processor.connections.postgres_session import PostgresSession
from processor.dev.home import DATABASE, Addresses, Home
from processor.embedded import PostgresServer, RedisServer
from processor.errors import DatabaseError, ProcessorError, Unavailable
from processor.ledger import schema
from processor.telemetry.progress import Progress

_EXISTS = f"SELECT count(*) FROM pg_catalog.pg_database WHERE datname = '{DATABASE}'"


class Workbench:
    """The two servers; `with workbench:` runs them. They stop cleanly and keep their data."""

    def __init__(self, home: Home, settings: Settings, sql: Path | None = None) -> None:
        """`sql`: a file that is executed when the database is created."""
        self._home = home
        self._settings = settings
        self._sql = sql
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Addresses:
        """Start both. Raises Unavailable, and ProcessorError if the file of SQL fails."""
        with contextlib.ExitStack() as started:
            addresses = started.enter_context(self._home).choose_addresses()
            redis = RedisServer(
                {"appendonly": True, "maxmemory-policy": "noeviction"},
                port=addresses.redis_port, directory=self._home.path / "redis",
            )  # fmt: skip
            postgres = PostgresServer(
                port=addresses.postgres_port, directory=self._home.path / "postgres"
            )
            for server in (redis, postgres):
                started.callback(server.close)
                try:
                    server.start()
                except Unavailable as error:
                    raise Unavailable(
                        str(error), hint="processor dev --reset begins with empty servers"
                    ) from None
                started.callback(server.stop)
            self._prepare(postgres.dsn, addresses.database)
            self._exit = started.pop_all()
        return addresses

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _prepare(self, maintenance: str, dsn: str) -> None:
        """Create what is missing: the database with the user's tables, and our schema."""
        with self._session(maintenance) as session:
            new = session.run(_EXISTS) == [(0,)]
            if new:
                session.run(f"CREATE DATABASE {DATABASE}")
        try:
            with self._session(dsn) as session:
                if new and self._sql is not None:
                    self._execute(session, self._sql)
                schema.create(session)
        except BaseException:
            if new:
                # The next start must not take half a database for a complete one.
                with self._session(maintenance) as session:
                    session.run(f"DROP DATABASE {DATABASE}")
            raise

    def _execute(self, session: PostgresSession, path: Path) -> None:
        try:
            session.run(path.read_text())
        except DatabaseError as error:
            # The developer wrote the file, so PostgreSQL's own words are theirs to read.
            why = " ".join(error.detail.split()) or str(error)
            raise ProcessorError(f"{path}: {why}", hint="nothing of the file is kept") from None

    def _session(self, dsn: str) -> contextlib.closing[PostgresSession]:
        settings = dataclasses.replace(self._settings, dsn=dsn)
        session = PostgresSession(settings, Progress(), application="processor dev")
        session.connect()
        return contextlib.closing(session)
