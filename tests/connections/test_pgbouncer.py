"""A real PgBouncer between the processor and PostgreSQL: used in session mode, else refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseUnavailable, PoolerDetected
from processor.telemetry.progress import Progress
from tests.harness.cli import Cli
from tests.harness.servers import Database, execute
from tests.harness.site import Site, step, write

Maker = Callable[..., Any]


def session_at(site: Site, dsn: str, *, writes: bool) -> PostgresSession:
    settings = replace(site.settings.database, dsn=dsn, connect_timeout=1.0)
    return PostgresSession(settings, Progress(), application="test", writes=writes)


def test_pgbouncer_in_session_mode_is_as_good_as_none(
    pgbouncer_to: Maker, database: Database, site_of: Maker, cli: Cli
) -> None:
    dsn = pgbouncer_to(database.server, "session").dsn_of(database.name)
    site: Site = site_of(database={"dsn": dsn})
    owner, standby = site.drain(), site.drain(instance="another")
    site.submit(write(1), write(2, timeout=60))

    step(owner)
    step(standby)

    assert site.tape() == [1, 2]
    assert len(owner.owners.owned) == 3
    assert not standby.owners.owned
    assert "through a pooler in session mode" in cli.use(site.mapping)("doctor").out


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("writes", [True, False], ids=["drain", "reads"])
def test_pgbouncer_in_another_mode_is_refused_and_does_not_hand_on_our_settings(
    writes: bool, mode: str, size: int, pgbouncer_to: Maker, database: Database, site: Site
) -> None:
    """Two owners would hold one lock, and the application's next write would be read-only."""
    dsn = pgbouncer_to(database.server, mode, size).dsn_of(database.name)
    execute(dsn, "select 1")
    session = session_at(site, dsn, writes=writes)

    with pytest.raises(PoolerDetected, match=r"database\.dsn and replicas\.servers"):
        session.connect()

    session.close()
    for number in range(size + 1):
        execute(dsn, f"insert into account values ({number})")
        assert execute(dsn, "show statement_timeout") == [("0",)]


@contextmanager
def traffic(dsn: str, clients: int) -> Iterator[None]:
    """Clients of an application that send transactions all the time."""
    ended = threading.Event()

    def run() -> None:
        with closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            while not ended.is_set():
                connection.cursor().execute("select pg_sleep(random() * 0.002)")

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_busy_pool_in_transaction_mode_is_refused_each_time(
    pgbouncer_to: Maker, database: Database, site: Site
) -> None:
    dsn = pgbouncer_to(database.server, "transaction", 4).dsn_of(database.name)
    with traffic(dsn, 3):
        for _ in range(20):
            session = session_at(site, dsn, writes=True)
            with pytest.raises(PoolerDetected):
                session.connect()
            session.close()


def test_a_pool_in_session_mode_that_is_too_small_says_so(
    pgbouncer_to: Maker, database: Database, site: Site
) -> None:
    dsn = pgbouncer_to(database.server, "session", 1).dsn_of(database.name)
    session = session_at(site, dsn, writes=True)
    with pytest.raises(DatabaseUnavailable, match="let its pool have one session more"):
        session.connect()
    session.close()
