"""Processor and primary are killed with -9 while the replica lacks the last commits.

With `settle: replicated` a second processor completes the work on the promoted replica: every
transaction once, those that share a key in order, the same ones dead.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from processor import crashpoint
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.failover import Pair, replayed
from tests.harness.process import Spawn
from tests.harness.servers import execute
from tests.harness.site import PROGRAM, Site, write
from tests.harness.wait import wait_until

#: Without those of a second failure, which this load does not have for certain.
NAMES = [
    n for n in crashpoint.NAMES
    if not n.startswith(("submit", "move", "stop", "lane", "retry"))
]  # fmt: skip
#: Points at which something is committed that is not yet parked, kept or released.
WORST = (
    ("batch-committed", 7), ("isolate-after", 100), ("dead-after", 7), ("settle-before", 7),
    ("release-before", 1), ("release-lines", 7), ("release-after", 1),
)  # fmt: skip
KEYS = 5
#: Batch size, and the visit to a point at which the process dies.
VISITS = {1: 3, 7: 2, 100: 1}
#: Points that few batches reach.
RARE = ("release-lines", "release-records", "release-due")


def mixed(count: int) -> tuple[list[Transaction], int]:
    """Return a load and the number of its transactions that die.

    Each orphan's parent row, with the same number, comes later.
    """
    load: list[Transaction] = []
    dying = 0
    for n in range(count):
        key = f"k{n % KEYS}" if n % 3 else None
        if n % 10 == 4:
            load.append(Transaction(key=f"p{n}").insert("tape", {"n": "poison"}))
            load.append(Transaction().insert("tape", {"n": "poison"}))
            dying += 2
        if n % 10 == 6:
            for options in ({"key": f"k{n % KEYS}"}, {}):
                load.append(Transaction(**options).insert("link", {"n": n}))  # type: ignore[arg-type]
        if n % 10 == 9:
            load.append(Transaction().insert("shelf", {"n": n - 3}))
        load.append(write(n, key, **({"key": key} if key else {})))
    return load, dying


def kill_and_fail(spawn: Spawn, site: Site, pair: Pair, point: str, size: int) -> None:
    site.execute("create table shelf (n int primary key)")
    site.execute("create table link (n int references shelf)")
    first, count = [write(-1)], {1: 40, 7: 60, 100: 250}[size]
    site.start()
    site.submit(*first)
    replayed(site, pair, -1)
    assert drain_thread.stop()
    pair.link.hold()
    load, dying = mixed(count)
    # Every fifth is submitted twice, as after a lost reply.
    site.submit(*(t for n, one in enumerate(load) for t in ([one, one] if n % 5 == 0 else [one])))
    visit = 1 if point.startswith(RARE) else VISITS[size]
    armed = {"PROCESSOR_CRASHPOINTS": "armed", "PROCESSOR_CRASHPOINT": f"{point}:{visit}"}
    process = spawn(PROGRAM, json.dumps(site.mapping), **armed)
    if process.wait(20) != -signal.SIGKILL:
        pytest.fail(f"{point} was not reached: {process.output}")

    pair.fail(site)
    site.start()

    wait_until(lambda: not site.depth() and not site.parked(), 30, site.tale)
    tape = site.tape()
    assert sorted(tape) == sorted([-1, *range(count)])
    for key in range(KEYS):
        of_key = site.tape(f"k{key}")
        assert of_key == sorted(of_key), f"k{key}: {of_key}"
    orphans = [n for n in range(count) if n % 10 == 6]
    assert sorted(n for (n,) in execute(site.dsn, "select n from link")) == sorted(orphans * 2)
    assert len(site.dead()) == dying
    assert site.one("select count(*) from processor.ledger") == len(load) + 1


@pytest.mark.parametrize(("point", "size"), WORST)
def test_the_batch_of_a_killed_processor_survives_a_failover(
    point: str, size: int, spawn: Spawn, site_at: Callable[..., Site], pair: Pair
) -> None:
    settings = {"attempts": 30, "delay": 0.1}
    site = site_at(settle="replicated", batch={"entries": size}, retry=settings)
    kill_and_fail(spawn, site, pair, point, size)


@pytest.mark.soak
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("point", NAMES)
def test_the_batch_of_a_processor_killed_at_any_point_survives_a_failover(
    point: str, size: int, spawn: Spawn, site_at: Callable[..., Site], pair: Pair
) -> None:
    settings = {"attempts": 30, "delay": 0.1}
    site = site_at(settle="replicated", batch={"entries": size}, retry=settings)
    kill_and_fail(spawn, site, pair, point, size)
