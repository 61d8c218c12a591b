"""Receipts that wait for real replicas: no write is replicated that a replica does not show."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest

import processor
from processor.apply import committer
from processor.config.loader import configure
from processor.connections.wal_position import parse_lsn
from processor.receipts.receipt import Receipt
from processor.replicas import queries
from processor.runtime import drain_thread
from processor.telemetry import status
from tests.harness.cli import as_user
from tests.harness.process import Spawn
from tests.harness.proxy import Proxy
from tests.harness.replicas import Replicas, committed
from tests.harness.servers import Factory, execute
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

THREADS, ROUNDS, EACH = 50, 4, 5
#: How long the replicas delay the replay of what they have received.
DELAY = "60ms"


def hidden(site: Site, replicas: Replicas) -> list[int]:
    """Write a thousand rows, and wait until each is replicated; return those that a replica did not
    show at that moment."""
    numbers = itertools.count(1)
    found: list[int] = []

    def writer(_: int) -> None:
        readers = [psycopg2.connect(dsn) for dsn in replicas.servers.values()]
        for reader in readers:
            reader.autocommit = True
        for _ in range(ROUNDS):
            mine = [next(numbers) for _ in range(EACH)]
            for n, receipt in zip(mine, site.submit(*map(write, mine)), strict=True):
                reached = receipt.wait("replicated", 30)
                assert reached.state == "replicated", reached
                for reader in readers:
                    with reader.cursor() as cursor:
                        cursor.execute("select from tape where n = %s", (n,))
                        found.extend([n] if cursor.rowcount != 1 else [])
        for reader in readers:
            reader.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(writer, range(THREADS)))
    assert len(site.tape()) == THREADS * ROUNDS * EACH
    return found


@pytest.fixture
def late(followed: Callable[..., Site], replicas: Replicas) -> Callable[..., Site]:
    """A started site whose replicas replay late."""

    def make(synchronous: str, *, servers: bool = True) -> Site:
        site = followed(servers=servers)
        site.start()
        replicas.catch_up()
        for name in replicas.standbys:
            replicas.delay(name, DELAY)
        if synchronous == "remote_apply":
            replicas.primary.reload({"synchronous_standby_names": "FIRST 1 (near)"})
        replicas.primary.reload({"synchronous_commit": synchronous})
        wait_until(lambda: execute(site.dsn, "show synchronous_commit") == [(synchronous,)])
        return site

    return make


@pytest.mark.parametrize("synchronous", ["on", "off", "remote_apply"])
@pytest.mark.parametrize("servers", [True, False], ids=["servers", "pg_stat_replication"])
def test_no_write_is_replicated_that_a_replica_does_not_show(
    late: Callable[..., Site], replicas: Replicas, synchronous: str, servers: bool
) -> None:
    assert hidden(late(synchronous, servers=servers), replicas) == []


def test_the_check_detects_a_watch_that_confuses_received_with_replayed(
    late: Callable[..., Site], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = queries.STREAMING_REPLICAS.replace("replay_lsn", "flush_lsn")
    monkeypatch.setattr(queries, "STREAMING_REPLICAS", received)
    assert len(hidden(late("on", servers=False), replicas)) > 100


def test_the_check_detects_a_position_before_the_end_of_its_commit(
    late: Callable[..., Site], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 34: with synchronous_commit off the written position lags behind the commit."""
    monkeypatch.setattr(committer, "after_commit", lambda current, *_: parse_lsn(current))
    assert hidden(late("off", servers=False), replicas)


# One receipt.


@pytest.fixture
def site(followed: Callable[..., Site]) -> Site:
    made = followed()
    made.start()
    return made


def test_a_status_says_which_replica_has_the_write(site: Site, replicas: Replicas) -> None:
    replicas.pause("far")
    receipt = committed(site)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})
    assert receipt.status().state == "committed"
    assert receipt.wait("replicated", 0.3).state == "committed"
    replicas.resume("far")
    reached = receipt.wait("replicated", 10)
    assert (reached.state, reached.replicas) == ("replicated", {"near": True, "far": True})
    assert reached.position is not None
    assert receipt.status() == reached


def test_waits_end_by_reports_and_not_by_querying(site: Site) -> None:
    begun = time.monotonic()
    for n in range(20):
        assert site.submit(write(n))[0].wait("replicated", 10).state == "replicated"
    assert time.monotonic() - begun < 6.0


def test_the_wait_for_a_dead_write_ends(site: Site) -> None:
    (receipt,) = site.submit(processor.Transaction().insert("tape", {"n": "poison"}))
    assert receipt.wait("replicated", 10).state == "dead"


def test_a_replica_that_replays_late_wakes_a_thousand_waiters_over_one_connection(
    site: Site, replicas: Replicas
) -> None:
    replicas.pause("far")
    receipts = site.submit(*(write(n) for n in range(1, 1001)))
    assert receipts[-1].wait(timeout=20).state == "committed"
    reached: list[tuple[str, float]] = []
    threads = [
        threading.Thread(
            target=lambda r=r: reached.append((r.wait("replicated", 60).state, time.monotonic()))
        )
        for r in receipts
    ]
    # Tests before this one may have left connections of their own.
    before = len(site.redis.client_list())
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(t.name == "processor-watcher" for t in threading.enumerate()) == 1)
    assert len(site.redis.client_list()) - before < 9
    assert not reached
    replicas.resume("far")
    begun = time.monotonic()
    for thread in threads:
        thread.join()
    assert [state for state, _ in reached] == ["replicated"] * 1000
    assert max(at for _, at in reached) - begun < 3.0


def test_nothing_waits_for_a_replica_that_is_lost(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed(replicas={"timeout": 0.3, "lost_after": 1.0})
    site.start()
    replicas.pause("far")
    (receipt,) = site.submit(write(1))
    reached = receipt.wait("replicated", 10)
    assert (reached.state, reached.replicas) == ("replicated", {"near": True, "far": False})
    replicas.pause("near")
    (receipt,) = site.submit(write(2))
    wait_until(lambda: receipt.status().state == "committed")
    begun = time.monotonic()
    assert receipt.wait("replicated", 10).state == "committed"
    assert time.monotonic() - begun < 5, "waited although all replicas are lost"


def test_a_wait_without_replicas_is_refused_and_names_the_setting(
    alone: Site, configured: Callable[[Site], Site]
) -> None:
    alone.start()
    receipt = committed(alone)
    with pytest.raises(processor.InvalidTransaction, match=r"replicas\.servers"):
        receipt.wait("replicated", 10)
    configure(alone.changed(replicas={"tracking": False}))
    with pytest.raises(processor.InvalidTransaction, match=r"replicas\.tracking"):
        receipt.wait("replicated", 10)
    assert receipt.status().state == "committed"


@pytest.fixture
def alone(site_of: Callable[..., Site], configured: Callable[[Site], Site]) -> Site:
    """A site without replicas."""
    return configured(site_of())


# Without a note, or without a watch.


@pytest.mark.parametrize("servers", [True, False], ids=["servers", "pg_stat_replication"])
def test_without_a_note_the_ledgers_are_asked(
    followed: Callable[..., Site], replicas: Replicas, servers: bool
) -> None:
    site = followed(servers=servers)
    site.start()
    replicas.pause("far")
    receipt = committed(site)
    site.redis.delete(site.lane().commits)
    wait_until(lambda: receipt.status().replicas == {"far": False, "near": True})
    assert receipt.status().state == "committed"
    replicas.resume("far")
    assert receipt.wait("replicated", 10).state == "replicated"
    assert replicas.shows("far", 1)


def test_without_a_watch_the_replicas_are_asked_directly(
    site: Site, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.pause("far")
    receipt = committed(site)
    assert drain_thread.stop()
    monkeypatch.setattr(status, "REPORT_LIFETIME", -1.0)
    assert receipt.status().replicas == {"near": True, "far": False}
    replicas.resume("far")
    assert receipt.wait("replicated", 10).state == "replicated"


def test_an_entry_that_awaits_replicas_is_committed_although_its_note_is_gone(
    followed: Callable[..., Site], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = followed(settle="replicated")
    site.start()
    replicas.pause("far")
    receipt = committed(site)
    site.redis.delete(site.lane().commits)
    assert site.depth() == 1
    assert receipt.status().state == "committed"
    configure(site.changed(database={"dsn": "host=/nowhere dbname=none"}))
    assert receipt.status().state == "accepted", "Redis knows no more than that"
    configure(site.settings)
    replicas.resume("far")
    assert receipt.wait("replicated", 10).state == "replicated"


PROGRAM = """
import json, sys, processor
processor.configure(json.loads(sys.argv[1]))
print(processor.Receipt.parse(sys.argv[2]).wait("replicated", timeout=20).state)
"""


def test_a_producer_with_least_privilege_waits_for_replicas_through_redis_alone(
    site_of: Callable[..., Site], replicas: Replicas, own_redis: Factory, spawn: Spawn
) -> None:
    server = own_redis()
    site = site_of(server, replicas.primary, replicas={"servers": replicas.servers})
    replicas.catch_up()
    replicas.pause("far")
    site.start()
    (receipt,) = site.submit(write(1))
    nowhere = "host=/nowhere dbname=none"
    settings = {
        "redis": {"url": as_user(server.url, "producer")}, "database": {"dsn": nowhere},
        "replicas": {"servers": dict.fromkeys(replicas.servers, nowhere)},
    }  # fmt: skip
    process = spawn(PROGRAM, json.dumps(settings), str(receipt))
    site.commits(1)
    replicas.resume("far")
    process.expect("replicated", 20)


# After a failover.


@pytest.fixture
def pair(own_postgres: Factory, own_standby: Factory, proxy_to: Callable[..., Proxy]) -> Any:
    """A primary, a replica, and the link between them."""
    primary = own_postgres()
    link = proxy_to(primary)
    way = f"host=127.0.0.1 port={link.port}"
    return primary, own_standby(primary, name="near", conninfo_override=way), link


def both(pair: Any) -> str:
    primary, standby, _ = pair
    return (
        f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=postgres"
        " dbname=postgres target_session_attrs=read-write"
    )


@pytest.fixture
def failing(
    site_of: Callable[..., Site], pair: Any, configured: Callable[[Site], Site]
) -> Callable[..., tuple[Site, Receipt, Receipt]]:
    """A started site with one write that its replica has, and one that never reaches it."""

    def make(**settings: Any) -> tuple[Site, Receipt, Receipt]:
        primary, standby, link = pair
        site = configured(site_of(
            postgres=primary, database={"dsn": both(pair)},
            replicas={"servers": {"near": standby.dsn}}, **settings,
        ))  # fmt: skip
        site.start()
        kept = site.submit(write(1))[0]
        assert kept.wait("replicated", 10).state == "replicated"
        link.hold()
        lost = site.submit(write(2))[0]
        assert lost.wait("committed", 10).state == "committed"
        return site, kept, lost

    return make


def fail(site: Site, pair: Any) -> None:
    primary, standby, link = pair
    primary.kill()
    link.off()
    standby.promote()
    site.dsn = standby.dsn


def test_a_commit_that_a_failover_lost_is_lost_and_never_replicated(
    failing: Callable[..., Any], pair: Any
) -> None:
    site, kept, lost = failing()
    # Its note must not be the newest that the waiter has read.
    committed(site, 99)
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.append(lost.wait("replicated", 30)))
    waiter.start()
    fail(site, pair)
    (new,) = site.submit(write(3))
    assert new.wait("replicated", 20).state == "replicated"
    for n in range(4, 54):
        site.submit(write(n))
    reached = lost.status()
    assert (reached.state, reached.replicas) == ("lost", {})
    assert "timeline 1, lost in a failover" in reached.reason
    with pytest.raises(processor.TransactionLost, match="timeline 1"):
        lost.result(timeout=5)
    waiter.join(10)
    assert found[0].state == "lost"
    assert kept.status().state == "replicated"
    assert kept.wait("replicated", 5).state == "replicated"


def test_without_a_ledger_a_commit_from_before_a_failover_is_not_replicated(
    failing: Callable[..., Any], pair: Any
) -> None:
    site, _, lost = failing()
    before = lost.status().position
    fail(site, pair)
    (new,) = site.submit(write(3))
    assert new.wait("committed", 20).state == "committed"
    assert drain_thread.stop()
    pair[0].start()
    for dsn in ("host=/nowhere dbname=none", pair[0].dsn):
        configure(site.changed(database={"dsn": dsn}))
        reached = lost.status()
        assert (reached.state, reached.position) == ("committed", before), dsn
    site.redis.delete(site.lane().commits)
    with pytest.raises(processor.DatabaseUnavailable, match="is an old primary"):
        lost.status()


def test_a_wait_outlives_a_failover_after_which_the_write_is_applied_again(
    failing: Callable[..., Any], pair: Any
) -> None:
    site, _, missed = failing(settle="replicated")
    found: list[Any] = []
    waiter = threading.Thread(target=lambda: found.append(missed.wait("replicated", 30)))
    waiter.start()
    fail(site, pair)
    waiter.join(30)
    (reached,) = found
    assert (reached.state, reached.position.timeline) == ("replicated", 2)
    assert site.tape() == [1, 2]
    assert missed.status().state == "replicated"


# What it costs.


def test_a_status_with_all_replicas_is_one_round_trip_to_redis_and_none_to_postgresql(
    site: Site, proxy_to: Callable[..., Proxy], redis_server: Any
) -> None:
    receipt = site.submit(write(1))[0]
    assert receipt.wait("replicated", 10).state == "replicated"
    way = proxy_to(redis_server)
    nowhere = "host=/nowhere dbname=none"
    configure(site.changed(
        redis={"url": way.url}, database={"dsn": nowhere},
        replicas={"servers": dict.fromkeys(("near", "far"), nowhere)},
    ))  # fmt: skip
    assert receipt.status().state == "replicated"
    before = way.round_trips
    for _ in range(5):
        assert receipt.status().replicas == {"near": True, "far": True}
    assert way.round_trips - before == 5
    assert receipt.wait("replicated", 10).state == "replicated"
