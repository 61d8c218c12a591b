"""Clocks that are wrong: only that of Redis counts."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace
from typing import Any

import pytest

import processor
from processor.buffer import delayed
from processor.config import loader
from processor.connections.redis_client import RedisConnection
from tests.harness.site import FAILING, Site, step, write
from tests.harness.wait import wait_until


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.parametrize("whose", ["processor.producer.submit", "processor.drain.drain"])
def test_a_delay_is_counted_by_the_clock_of_redis(
    whose: str, ahead: float, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 82: a clock that is an hour wrong neither delays nor hurries anything."""
    clock = SimpleNamespace(time=lambda: time.time() + ahead, monotonic=time.monotonic)
    monkeypatch.setattr(f"{whose}.time", clock, raising=False)
    loader.configure(site.settings)
    site.start()
    begun = time.monotonic()
    processor.submit(write(1, delay=0.5))
    site.commits(1, timeout=5.0)
    assert time.monotonic() - begun >= 0.5
    loader.configure({})


@pytest.fixture
def redis_back(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how many seconds the clock of Redis is set back, for all that ask for its time."""
    back = [0.0]
    calls = RedisConnection.calls

    def stepped(self: RedisConnection, commands: Any, **options: Any) -> Any:
        replies = calls(self, commands, **options)
        for place, command in enumerate(commands):
            if command == ("TIME",):
                replies[place] = [str(int(replies[place][0]) - int(back[0])).encode(),
                                  replies[place][1]]  # fmt: skip
        return replies

    monkeypatch.setattr(RedisConnection, "calls", stepped)
    return back


@pytest.mark.parametrize("whose", ["Redis", "the processor"])
def test_a_clock_that_goes_back_an_hour_makes_nothing_wait_longer(
    whose: str, site: Site, redis_back: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 82: delays, retries and what is parked behind them continue as if nothing happened."""
    own = [0.0]
    clock = SimpleNamespace(time=lambda: time.time() - own[0], monotonic=time.monotonic)
    for module in ("drain.drain", "drain.due_work", "drain.operator_requests", "drain.settle"):
        monkeypatch.setattr(f"processor.{module}.time", clock, raising=False)
    site.execute(FAILING)
    loader.configure(site.settings)
    site.start(site.changed(retry={"delay": 2.0, "attempts": 9}))
    processor.submit(write(1, "x", key="k"))
    processor.submit(write(2, key="k"))
    processor.submit(write(3, delay=2))
    in_an_hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    processor.submit(write(5, due=in_an_hour))
    site.parks(2)
    begun = time.monotonic()

    (redis_back if whose == "Redis" else own)[0] = 3600.0
    site.execute("delete from failing")
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3], 6.0, lambda: site.tale())
    processor.submit(write(4, delay=1))
    assert 4 not in site.tape()
    wait_until(lambda: 4 in site.tape(), 6.0, lambda: site.tale())
    assert time.monotonic() - begun < 10.0
    assert (5 in site.tape(), site.redis.zcard(site.lane().scheduled)) == (False, 1)
    loader.configure({})


def test_a_retry_that_another_owner_put_an_hour_ahead_waits_no_hour(site: Site) -> None:
    """The clock of Redis went back while nobody owned the lane."""
    site.execute(FAILING)
    drain = site.drain(site.changed(retry={"delay": 2.0, "max_delay": 3.0, "attempts": 9}))
    (receipt,) = site.submit(write(1, "x"))
    step(drain)
    retry = site.lane().retry
    site.redis.zadd(retry, {receipt.id: time.time() + 3600})
    wait_until(lambda: step(drain) or site.redis.zscore(retry, receipt.id) < time.time() + 61)


def test_many_delayed_transactions_are_made_due_earlier_once(site: Site) -> None:
    """More than a page, and many at the same time."""
    lane, now = site.lane(), 1_000_000.0
    bodies = {b'{"id":"%d","delay":%d}' % (n, 10 + n % 3): now + 3600 + 10 + n % 3
              for n in range(1500)}  # fmt: skip
    named = {b'{"id":"%d","due":"2031-01-01T00:00:00Z"}' % n: now + 3611 for n in range(700)}
    since = {b'{"id":"%d","delay":7200}' % n: now + 7200 for n in range(3)}
    for stored in (bodies, named, since):
        site.redis.zadd(lane.scheduled, stored)
    redis = RedisConnection(site.settings.redis.url, 5.0)
    delayed.hasten(redis, lane, 3600.0, now)
    redis.close()
    found = dict(site.redis.zrange(lane.scheduled, 0, -1, withscores=True))
    assert found == {m: due - 3600 for m, due in bodies.items()} | named | since
