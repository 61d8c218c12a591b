"""The doorbell wakes the drain thread for each entry of another process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from processor.connections.redis_client import RedisConnection
from processor.runtime.doorbell import Doorbell
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


def test_no_entry_of_another_process_waits_for_the_interval(site_of) -> None:
    """A thousand of them, at any moment of a pass. A miss would cost seconds."""
    site = site_of(interval=25.0, database={"takeover": 60.0})
    site.start()
    chance = random.Random(7)
    slow = []
    for number in range(1000):
        started = time.monotonic()
        # Not `site.submit`, which sets the Event of this process.
        encoded = write(number).encode(time.time(), 1_000_000)
        site._producer.submit(encoded)
        wait_until(lambda: site.depth() == 0, 5.0, f"entry {number}", poll=0.0005)
        if time.monotonic() - started > 1.0:
            slow.append((number, time.monotonic() - started))
        time.sleep(chance.random() * 0.002)

    assert slow == []


def test_a_lane_that_opens_while_the_doorbell_reads_others_is_heard(site: Site, bell) -> None:
    doorbell, event, _ = bell
    doorbell.wait_for({"processor:a": "0-0"})
    reads(site)
    doorbell.rest()

    doorbell.wait_for({"processor:a": "0-0", "processor:b": "0-0"})
    site.redis.xadd("processor:b", {"n": 1})

    assert event.wait(1.0)


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
