"""The doorbell wakes the drain thread for each entry of another process."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from processor.connections.redis_client import RedisConnection
from processor.runtime.doorbell import Doorbell
from processor.telemetry import metrics, wakeup
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


@pytest.fixture
def bell(site: Site) -> Iterator[tuple[Doorbell, threading.Event, RedisConnection]]:
    event, redis = threading.Event(), RedisConnection(site.settings.redis.url, 2.0)
    doorbell = Doorbell(event, redis)
    doorbell.start()
    yield doorbell, event, redis
    doorbell.stop(5)


def reads(site: Site) -> None:
    """Wait until the doorbell blocks on Redis."""
    wait_until(lambda: site.redis.info("clients")["blocked_clients"] > 0)


def rests(site: Site) -> None:
    """Wait until the drain thread waits for the interval: passes follow each other sooner."""
    before = [-1.0]

    def same() -> bool:
        before.append(metrics.value("passes"))
        return before[-1] == before[-2]

    wait_until(same, poll=0.3)
    reads(site)


def cut_reads(site: Site) -> None:
    """Cut the connections that block on Redis."""
    for client in site.redis.client_list():
        if client["cmd"] == "xread":
            with contextlib.suppress(redis.ResponseError):
                site.redis.client_kill(client["addr"])


def cut_until(site: Site, ended: threading.Event) -> None:
    chance = random.Random(3)
    while not ended.wait(chance.random() * 0.05):
        cut_reads(site)


def slow_entries(site: Site, count: int) -> list[tuple[int, float]]:
    """Submit as another process does, at any moment of a pass; a miss would cost seconds."""
    chance = random.Random(7)
    slow = []
    for number in range(count):
        started = time.monotonic()
        # Not `site.submit`, which sets the Event of this process.
        encoded = write(number).encode(time.time(), 1_000_000)
        site._producer.submit(encoded)
        wait_until(lambda: site.depth() == 0, 5.0, f"entry {number}", poll=0.0005)
        if time.monotonic() - started > 1.0:
            slow.append((number, time.monotonic() - started))
        time.sleep(chance.random() * 0.002)
    return slow


def test_no_entry_of_another_process_waits_for_the_interval(site_of) -> None:
    site = site_of(interval=25.0, database={"takeover": 60.0})
    site.start()

    assert slow_entries(site, 1000) == []


def test_a_lane_that_opens_while_the_doorbell_reads_others_is_heard(site: Site, bell) -> None:
    doorbell, event, _ = bell
    doorbell.wait_for({"processor:a": "0-0"})
    reads(site)
    doorbell.rest()

    doorbell.wait_for({"processor:a": "0-0", "processor:b": "0-0"})
    site.redis.xadd("processor:b", {"n": 1})

    assert event.wait(1.0)


def test_a_lane_that_opens_while_the_doorbell_connects_is_heard(
    site: Site, bell, monkeypatch
) -> None:
    """Rule 30: nothing could be cut yet, and the read went without the lane."""
    doorbell, event, redis = bell
    connect = redis._open

    def slowly():
        if not redis.alive:
            doorbell.wait_for({"processor:a": "0-0", "processor:b": "0-0"})
        return connect()

    monkeypatch.setattr(redis, "_open", slowly)
    doorbell.wait_for({"processor:a": "0-0"})
    reads(site)
    site.redis.xadd("processor:b", {"n": 1})

    assert event.wait(1.0)


def test_a_doorbell_whose_connection_was_cut_rings_at_once(site: Site, bell) -> None:
    """Rule 30: the drain thread waits already, and does not tell it again."""
    doorbell, event, _ = bell
    doorbell.wait_for({"processor:a": "0-0"})
    for _ in range(5):
        reads(site)
        cut_reads(site)
    site.redis.xadd("processor:a", {"n": 1})

    assert event.wait(0.5)


def test_lower_entry_ids_after_a_loss_of_data_are_heard(site_of) -> None:
    """Rule 30: the clock of a Redis that was replaced may be behind."""
    site = site_of(interval=25.0, database={"takeover": 60.0})
    site.start()
    site.submit(write(1))
    site.empties()
    stream = site.lane().stream
    site.redis.delete(stream)
    wakeup.wake()
    rests(site)
    body = write(2).encode(time.time(), 1_000_000).body
    site.redis.xadd(stream, {"v": "1", "tx": body}, id="1000-1")

    wait_until(lambda: site.tape() == [1, 2], 2.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_entry_waits_for_the_interval_while_the_connection_of_the_doorbell_is_cut(
    site_of,
) -> None:
    site = site_of(interval=25.0, database={"takeover": 60.0})
    site.start()
    ended = threading.Event()
    cutter = threading.Thread(target=cut_until, args=(site, ended))
    cutter.start()
    try:
        slow = slow_entries(site, 20_000)
    finally:
        ended.set()
        cutter.join(10)
    assert slow == []


def test_a_doorbell_that_met_a_defect_rings_again(site: Site, bell, monkeypatch, caplog) -> None:
    doorbell, event, redis = bell
    before, failures = redis.read, iter([RuntimeError("as requested")])

    def fails_once(*args, **options):
        for error in failures:
            raise error
        return before(*args, **options)

    monkeypatch.setattr(redis, "read", fails_once)
    doorbell.wait_for({"processor:a": "0-0"})
    wait_until(lambda: "doorbell: failed" in caplog.text)
    site.redis.xadd("processor:a", {"n": 1})

    assert event.wait(3.0)
