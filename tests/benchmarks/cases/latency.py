"""`latency`: submit to committed, one every 50 ms, beside the same statements committed directly.

The figure is for a processor in the same process; `doorbell` is for one in another process. They
and the direct commits take turns, so that neither processor disturbs the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import processor
from tests.benchmarks.child import Child
from tests.benchmarks.commits import POINT, note_points, waits
from tests.benchmarks.options import Options, note
from tests.benchmarks.orders import Order, orders, transaction
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import Stage
from tests.harness.wait import wait_until

PACE = 0.05
WARM = 10
INSERT = "INSERT INTO orders (id, account, amount) VALUES (%s, %s, %s)"
UPDATE = "UPDATE account SET balance = balance + %s WHERE id = %s"


def run(options: Options) -> Result:
    """Return milliseconds, the median of all samples of all rounds."""
    count, turns = options.many(40), options.turns(5)
    direct, near, far = [], [], []
    points: dict[str, list[float]] = defaultdict(list)
    note_points(lambda name, at: points[name].append(at))
    commits = points[POINT]
    with Stage() as stage:
        stage.empty()
        child = Child(stage.redis_server.directory, stage.settings(namespace="far"), "--commits")
        try:
            for turn in range(turns):
                direct += _direct(stage, count)
                near += _near(stage, count, commits)
                if options.profile:
                    _print_points(points)
                far += _submitted(stage, "far", count, lambda: child.commits)
                note(f"round {turn + 1} of {turns}: p50 {1e3 * median(direct):.2f} ms direct,"
                     f" {1e3 * median(near):.2f} near, {1e3 * median(far):.2f} far")  # fmt: skip
        finally:
            child.kill()
    return Result(
        1e3 * median(near), "ms", 1e3 * median(direct),
        {"p99": _p99(near), "limit_p99": _p99(direct), "doorbell": rounded(1e3 * median(far)),
         "doorbell_ratio": rounded(median(far) / median(direct)), "doorbell_p99": _p99(far),
         "n": len(near)},
    )  # fmt: skip


def _print_points(points: dict[str, list[float]]) -> None:
    """Print when a transaction passed the crash points, from the one before its XADD on."""
    begun = points["submit-before-add"]
    for name, at in points.items():
        if name.startswith(("submit-after", "pass", "batch", "settle")):
            note(f"{1e3 * median(waits(begun, at)):8.3f} ms  {name}")


def _direct(stage: Stage, count: int) -> list[float]:
    """Commit two statements on an open connection, as a request handler does."""
    connection = stage.connect()
    connection.autocommit = False
    took: list[float] = []

    def commit(order: Order) -> None:
        id, account, amount = order
        begun = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(INSERT, (id, account, amount))
            cursor.execute(UPDATE, (amount, account))
        connection.commit()
        took.append(time.monotonic() - begun)

    _paced(WARM + count, commit)
    connection.close()
    return took[WARM:]


def _near(stage: Stage, count: int, commits: list[float]) -> list[float]:
    stage.configure(namespace="near")
    processor.start()
    try:
        return _submitted(stage, "near", count, lambda: commits)
    finally:
        processor.stop()


def _submitted(
    stage: Stage, namespace: str, count: int, commits: Callable[[], list[float]]
) -> list[float]:
    stage.configure(namespace=namespace)
    begun: list[float] = []

    def submit(order: Order) -> None:
        ready = transaction(order)
        begun.append(time.monotonic())
        processor.submit(ready)

    _paced(WARM, submit)
    wait_until(lambda: commits() and commits()[-1] > begun[-1], 20.0)
    begun.clear()
    _paced(count, submit)
    wait_until(lambda: commits()[-1] > begun[-1], 20.0)
    return waits(begun, commits())


def _paced(count: int, act: Callable[[Order], Any]) -> None:
    """Yield every 50 ms by the clock, however long each took."""
    begun = time.monotonic()
    for number, order in enumerate(orders(count)):
        time.sleep(max(0.0, begun + number * PACE - time.monotonic()))
        act(order)


def _p99(seconds: list[float]) -> float:
    return rounded(1e3 * quantiles(seconds, n=100)[98])
