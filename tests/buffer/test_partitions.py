"""The number of partitions of a queue: set by the first write, changed only while it is empty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from processor import ConfigError
from processor.producer.writer import Writer
from processor.transaction.builder import Transaction
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


@pytest.fixture
def producers(site: Site) -> Iterator[Any]:
    made: list[Writer] = []

    def make(partitions: int) -> Writer:
        mapping = {"queues": {"default": {"partitions": partitions}}}
        made.append(Writer(site.changed(**mapping)))
        return made[-1]

    yield make
    for producer in made:
        producer.pool.close()


def submit(producer: Writer, transaction: Transaction) -> str:
    return producer.submit(transaction.encode(0.0, 1_000_000)).lane


def test_keys_keep_their_lane_and_spread_over_all_lanes(producers: Any) -> None:
    producer = producers(4)
    lanes = {n: submit(producer, write(n, key=f"k{n}")) for n in range(40)}
    assert set(lanes.values()) == {f"default:{n}" for n in range(4)}
    assert {n: submit(producer, write(n, key=f"k{n}")) for n in range(40)} == lanes


def test_the_number_cannot_change_while_the_buffer_holds_transactions(
    producers: Any, site: Site
) -> None:
    """Rule 7: transactions that share a key would be in two lanes, without an order."""
    submit(producers(4), write(1, key="k"))
    with pytest.raises(ConfigError, match=r"queues.default.partitions: .* from 4 to 2 while 1 "):
        submit(producers(2), write(2, key="k"))
    assert sum(site.depth(f"default:{n}") for n in range(4)) == 1


@pytest.mark.parametrize("where", ["scheduled", "parked"])
def test_scheduled_and_parked_transactions_count_as_well(
    where: str, producers: Any, site: Site
) -> None:
    submit(producers(4), write(1, key="k", delay=3600.0) if where == "scheduled" else write(1))
    if where == "parked":
        for n in range(4):
            site.redis.delete(site.lane(f"default:{n}").stream)
        site.redis.hset(site.lane("default:2").parked, "id", "record")
    with pytest.raises(ConfigError, match="partitions"):
        submit(producers(1), write(2))


def test_the_number_of_an_empty_queue_can_change_and_all_its_lanes_are_drained(
    producers: Any, site: Site
) -> None:
    submit(producers(4), write(1, key="k"))
    site.start()
    site.empties()
    many = producers(16)
    lanes = {submit(many, write(n, key=f"k{n}")) for n in range(2, 42)}
    assert len(lanes) > 4
    # The processor's own settings have one partition; it finds the other lanes in the registry.
    wait_until(lambda: len(site.tape()) == 41)
    assert sorted(site.tape()) == list(range(1, 42))


def test_the_number_cannot_change_while_a_dead_letter_holds_a_key(
    producers: Any, site: Site
) -> None:
    """Rule 27: in its new lane the key would be free, and what follows would overtake."""
    before = producers(1)
    submit(before, Transaction(key="k", attempts=1).insert("nowhere", {"n": 1}))
    site.start()
    wait_until(site.dead)
    site.empties()
    with pytest.raises(ConfigError, match="from 1 to 4 while dead letters hold 1 keys"):
        submit(producers(4), write(2, key="k"))
