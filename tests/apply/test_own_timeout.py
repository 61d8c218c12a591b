"""A transaction's own `timeout`: a setting bounds it, and it hides neither outage nor hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from processor.errors import InvalidTransaction
from processor.producer import submit as producer
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

NAP = {"nap": "select pg_sleep(%(s)s)"}
#: The deadline of a call in these tests, in seconds.
CALL = 1.2
QUICK = {
    "connect_timeout": 1.0, "call_timeout": CALL, "statement_timeout": 1.0, "lock_timeout": 0.2,
    "takeover": 3.0,
}  # fmt: skip


def naps(site: Site) -> list[tuple[int, str]]:
    """Return process id and application_name of the sessions that sleep."""
    return site.execute(
        "select pid, application_name from pg_stat_activity where wait_event = 'PgSleep'"
        " and datname = current_database()"
    )


def test_an_hour_is_refused_at_the_door(site: Site) -> None:
    hour = write(1, timeout=3600)
    with pytest.raises(InvalidTransaction, match=r"600 seconds \(database\.longest_timeout\)"):
        producer._encoded(site._producer, hour)
    producer._encoded(site._producer, write(1, timeout=600))


def test_a_longer_timeout_than_the_processor_allows_ends_that_transaction_alone(
    site_of: Callable[..., Site],
) -> None:
    """The producer has other settings, or is of an earlier release."""
    site = site_of(database={"longest_timeout": 1.0})
    drain = site.drain()
    slow = write(0, timeout=3600)
    site.submit(write(1), slow, write(2, timeout=1.0), write(3))

    step(drain)

    assert site.tape() == [1, 2, 3]
    assert [row[:2] for row in site.dead()] == [(slow.id, "22023")]
    assert "database.longest_timeout" in site.dead()[0][2]


def test_a_silent_network_is_noticed_within_the_deadline_of_a_call(
    proxy_to: Callable[..., Any], postgres_server: Any, site_of: Callable[..., Site]
) -> None:
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy, statements=NAP, database=QUICK)
    site.start()
    nap = Transaction(timeout=300).insert("tape", {"n": 1}).statement("nap", {"s": 1.6})
    site.submit(nap)
    wait_until(lambda: naps(site))
    proxy.hold()
    cut = time.monotonic()

    # Health and the watchdog of systemd would see it too.
    assert drain_thread.progress_age(cut + CALL + 0.1) > 0
    site.shows("outage", timeout=3 * CALL)
    assert time.monotonic() - cut < CALL + 1.0
    proxy.reset()
    proxy.release()
    site.submit(write(2))
    site.commits(1, 2)
    assert site.dead() == []


def test_a_long_statement_on_a_live_server_is_left_alone(
    proxy_to: Callable[..., Any], postgres_server: Any, site_of: Callable[..., Site]
) -> None:
    site = site_of(postgres=proxy_to(postgres_server), statements=NAP, database=QUICK)
    site.start()
    generation = drain_thread.singleton.state.instance
    nap = Transaction(timeout=30, attempts=1).statement("nap", {"s": 1.7 * CALL})
    site.submit(nap, write(2))
    wait_until(lambda: naps(site))
    assert naps(site)[0][1] == f"processor {nap.id} 0"

    site.commits(2)
    assert site.status == "running"
    assert drain_thread.singleton.state.instance == generation
    assert site.one("select max(epoch) from processor.lane") == 1
    assert site.dead() == []


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_statement_that_hangs_is_noticed_by_its_own_limit_and_not_by_that_of_all(
    proxy_to: Callable[..., Any], postgres_server: Any, site_of: Callable[..., Site]
) -> None:
    """PostgreSQL answers, but the backend stopped: on a disk that does not answer, for example."""
    site = site_of(postgres=proxy_to(postgres_server), statements=NAP, database=QUICK)
    site.start()
    many = Transaction(timeout=1.5).insert("tape", {"n": 1})
    for _ in range(100):
        many.statement("nap", {"s": 0.3})
    site.submit(many)
    wait_until(lambda: [name for _, name in naps(site) if name.endswith(" 2")])
    with frozen(naps(site)[0][0]):
        site.shows("outage", timeout=1.5 + 2 * CALL)
    assert site.tape() == []
