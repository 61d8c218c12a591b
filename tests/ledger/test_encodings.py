"""Databases in another encoding than UTF-8 (rule 93)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from processor.connections.postgres_session import PostgresSession
from processor.embedded import PostgresServer
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter
from processor.runtime import drain_thread
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from tests.harness.servers import Database, execute
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


@pytest.fixture(params=["LATIN1", "EUC_JP"])
def foreign(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Database]:
    """A database in an encoding that lacks most letters."""
    name = f"foreign_{request.param.lower()}"
    execute(postgres_server.dsn, f"create database {name} encoding '{request.param}'"
            " locale 'C' template template0")  # fmt: skip
    yield Database(postgres_server, name)
    execute(postgres_server.dsn, f"drop database {name} with (force)")


def letter(site: Site, transaction_id: str) -> DeadLetter:
    session = PostgresSession(site.settings.database, Progress(), application="test")
    session.connect()
    with closing(session):
        return dead_letters.find(session, transaction_id)[0]


def test_a_database_in_latin1_stores_dead_letters_of_any_text(site_of, foreign: Database) -> None:
    site = site_of(postgres=foreign)
    keys = ("łódź", "é\\u0142", "日本")
    poison = Transaction(keys=keys, trace="trace-Ω").insert("account", {"id": 1, "balance": "x"})
    nowhere = Transaction(key="żółw").insert("tabełka", {"n": 1})
    unfit = Transaction(key="Ω").insert("tape", {"n": 7, "scope": "Ж☃"})
    site.start(site.changed(retry={"attempts": 1}))
    site.submit(poison, write(1, key="łódź"), nowhere, unfit, write(2))
    wait_until(lambda: len(site.dead()) == 3, message=lambda: site.tale())
    wait_until(lambda: site.tape() == [2], message=lambda: site.tale())
    assert site.status == "running"

    found = letter(site, poison.id)
    assert (found.keys, found.trace) == (keys, "trace-Ω")
    assert letter(site, nowhere.id).keys == ("żółw",)

    # Another owner rebuilds the lines of the keys from the dead letters.
    assert drain_thread.stop()
    places = site.redis.zcard(site.lane().blocked)
    site.start(site.changed(retry={"attempts": 1}))
    assert site.redis.zcard(site.lane().blocked) == places
    site.ask(poison.id, "retry")
    wait_until(lambda: letter(site, poison.id).request is None, message=lambda: site.tale())
    assert letter(site, poison.id).keys == keys
    site.ask(poison.id, "discard")
    wait_until(lambda: site.tape() == [2, 1], message=lambda: site.tale())
