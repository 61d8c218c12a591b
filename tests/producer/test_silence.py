"""A Redis that does not answer holds a request for `redis.timeout` once, and the next ones not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from processor.embedded import RedisServer
from processor.errors import RedisUnavailable
from processor.producer import silence
from processor.producer.silence import Silence
from processor.producer.writer import Writer
from processor.transaction.builder import Transaction
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

TIMEOUT = 0.6


@pytest.fixture
def redis(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


@pytest.fixture
def producer_of(site_of: Callable[..., Site]) -> Iterator[Callable[[Any], Writer]]:
    """`producer_of(server)`: a producer that submits to a server, or through a proxy before it."""
    made: list[Writer] = []

    def make(server: Any) -> Writer:
        settings = site_of(redis=server).changed(redis={"url": server.url, "timeout": TIMEOUT})
        made.append(Writer(settings))
        return made[-1]

    yield make
    for writer in made:
        writer.close()


@pytest.fixture
def producer(redis: RedisServer, producer_of: Callable[[Any], Writer]) -> Writer:
    return producer_of(redis)


def submit(producer: Writer, transaction: Transaction | None = None) -> None:
    producer.submit((transaction or write(1)).encode(time.time(), 1_000_000))


def refusal_of(producer: Writer) -> tuple[RedisUnavailable, float]:
    """A submit that fails, and the seconds that it took."""
    began = time.monotonic()
    with pytest.raises(RedisUnavailable) as refused:
        submit(producer)
    return refused.value, time.monotonic() - began


@pytest.mark.parametrize("known", [True, False], ids=["open connection", "new connection"])
def test_a_submit_to_a_frozen_redis_takes_the_timeout_once(
    known: bool, redis: RedisServer, producer: Writer
) -> None:
    if known:
        submit(producer)
    redis.freeze()

    error, took = refusal_of(producer)

    assert TIMEOUT <= took < 1.5 * TIMEOUT
    assert "did not respond within 0.6 s" in str(error)
    redis.thaw()


def test_a_first_try_that_failed_late_leaves_the_second_one_the_rest(
    redis: RedisServer, producer_of: Callable[[Any], Writer], proxy_to: Callable[..., Any]
) -> None:
    """The reply is lost when half of the time is over, and then the network is silent."""
    proxy = proxy_to(redis)
    writer = producer_of(proxy)
    submit(writer)
    proxy.hold()
    cut = threading.Timer(TIMEOUT / 2, proxy.cut)
    cut.start()

    _, took = refusal_of(writer)

    assert took < 1.5 * TIMEOUT
    cut.join()


def test_after_a_timeout_submits_fail_at_once_and_one_at_a_time_is_a_probe(
    redis: RedisServer, producer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "_PAUSE", 0.3)
    submit(producer)
    redis.freeze()
    refusal_of(producer)
    error, took = refusal_of(producer)
    assert took < 0.1
    assert not error.sent

    results: list[float] = []

    def handler() -> None:
        results.append(refusal_of(producer)[1])

    time.sleep(0.3)  # the pause itself, counted from a refusal within it
    handlers = [threading.Thread(target=handler) for _ in range(8)]
    for each in handlers:
        each.start()
    for each in handlers:
        each.join()

    assert sum(took > TIMEOUT / 2 for took in results) == 1

    redis.thaw()
    wait_until(lambda: works(producer), 5)


def works(producer: Writer) -> bool:
    try:
        submit(producer)
    except RedisUnavailable:
        return False
    return True


def test_a_probe_that_is_interrupted_leaves_the_next_call_free() -> None:
    silent = Silence()
    late = RedisUnavailable("late")
    late.timed_out = True
    with pytest.raises(RedisUnavailable), silent:
        raise late
    with pytest.raises(RedisUnavailable, match="late"), silent:
        raise AssertionError
    silent._until = 0.0
    with pytest.raises(KeyboardInterrupt), silent:
        raise KeyboardInterrupt

    with silent:
        pass
    assert silent._until is None
    assert silent._probe.acquire(blocking=False)


def test_a_redis_that_refuses_connections_is_asked_each_time(
    redis: RedisServer, producer: Writer
) -> None:
    submit(producer)
    redis.stop()
    assert refusal_of(producer)[1] < TIMEOUT / 2
    redis.start()

    submit(producer)
