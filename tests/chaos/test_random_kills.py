"""Processors are killed with -9 at random moments while producers submit, without harm."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator

import pytest

from tests.harness import workload
from tests.harness.checker import Submitted
from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until
from tests.harness.workload import Site, Work, child, parent, plain, poison

PRODUCERS = 3
#: The longest life of a processor in seconds; much of it is the start.
LONGEST = 0.9


class Load:
    """Producers in threads that submit a few at a time, and sometimes the same ones twice."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.work: list[list[Work]] = [[] for _ in range(PRODUCERS)]
        self.history: list[list[Submitted]] = [[] for _ in range(PRODUCERS)]
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, random.Random(seed + n)))
                         for n in range(PRODUCERS)]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, chance: random.Random) -> None:
        for turn in itertools.count():
            if self._ending.wait(chance.uniform(0, 0.04)):
                return
            some = [self._make(number, turn, n, chance) for n in range(chance.randrange(1, 12))]
            receipts = self.site.producer.submit_many([self.site.encoded(one) for one in some])
            self.history[number] += map(workload.acknowledged, some, receipts)
            self.work[number] += some
            if chance.random() < 0.1:
                # As after a lost reply: all of them again.
                self.site.producer.submit_many([self.site.encoded(one) for one in some])

    @staticmethod
    def _make(number: int, turn: int, n: int, chance: random.Random) -> Work:
        keys = [f"{number}-{chance.randrange(20)}" for _ in range(chance.choice([0, 0, 1, 1, 2]))]
        kind = chance.random()
        if kind < 0.005:
            return poison(*[f"poison-{number}-{turn % 5}"] * chance.randrange(2))
        if kind < 0.006:
            return child(0, *keys)
        if kind < 0.03:
            return plain(*keys, f"poison-{number}-{turn % 5}")
        return plain(*dict.fromkeys(keys), **({"delay": 0.1} if kind > 0.97 else {}))

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self.site.history += itertools.chain(*self.history)


@pytest.fixture
def site(database: Database, redis_url: str) -> Iterator[Site]:
    workload.prepare(database)
    # Transactions that wait for a parent row do so for most of the run.
    yield from workload.sites(redis_url, database, retry={"delay": 0.1, "max_delay": 0.5})


def discarded_until_empty(site: Site) -> bool:
    """Discard the dead letters; return whether the lane is empty. Followers may die in turn."""
    asked = "SELECT id::text FROM processor.dead_letter WHERE outcome = 'dead' AND request IS NULL"
    site.ask("discard", [row[0] for row in site.database.execute(asked)])
    return site.left() == 0


def kill_at_random(site: Site, spawn: Spawn, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    load = Load(site, seed)
    for turn in range(kills):
        if turn == kills // 2:
            site.submit([parent(0)])
        victim = site.start(spawn)
        victim.expect("started")
        threading.Event().wait(chance.uniform(0, LONGEST))
        assert victim.running, victim.output
        victim.kill()
    load.end()

    last = site.start(spawn)
    everything = {one.id for one in site.history}
    wait_until(lambda: everything - site.decided() == site.parked(), 30 + 3 * kills, poll=0.1)
    assert not site.findings(site.parked()), site.findings(site.parked())

    # Transactions that wait for two keys are released a few at a time.
    wait_until(lambda: discarded_until_empty(site), 30 + 6 * kills, poll=0.1)
    assert last.terminate() == 0
    assert not site.findings(), site.findings()
    assert len(site.history) > 50 * kills, "too little work to show anything"


@pytest.mark.parametrize("seed", [1])
def test_ten_random_kills_under_load_lose_double_and_reorder_nothing(
    site: Site, spawn: Spawn, seed: int
) -> None:
    kill_at_random(site, spawn, seed, 10)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_fifty_random_kills_under_load_lose_double_and_reorder_nothing(
    site: Site, spawn: Spawn, seed: int
) -> None:
    kill_at_random(site, spawn, seed, 50)
