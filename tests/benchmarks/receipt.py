"""`receipt`: from commit to a waiter's return, next to a bare XADD heard by a blocked XREAD.

The figure is the p50 of a waiter among a thousand: the others, each in a thread of its own, wait
for transactions that are not due. `alone` is that without the others.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import redis

import processor
from tests.benchmarks.commits import POINT, note_points
from tests.benchmarks.options import Options
from tests.benchmarks.orders import orders, transaction
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import Stage

PACE = 0.01
#: How long the others wait.
SETTLING = 20.0
CROWD = 1000


def run(options: Options) -> Result:
    """Milliseconds, p50 of all samples."""
    count = options.many(300)
    points: dict[str, list[float]] = defaultdict(list)
    note_points(lambda name, at: points[name].append(at))
    with Stage() as stage:
        stage.empty()
        processor.start()
        bare = _bare(stage, count)
        alone = _single(count, points)
        with _others(CROWD - 1):
            among = _single(count, points)
        processor.stop()
    return Result(
        1e3 * median(among), "ms", 1e3 * median(bare),
        {"alone": rounded(1e3 * median(alone)), "waiters": CROWD, "n": count},
    )  # fmt: skip


def _single(count: int, points: dict[str, list[float]]) -> list[float]:
    took = []
    for order in orders(count):
        points.clear()
        processor.submit(transaction(order)).result(10.0)
        took.append(time.monotonic() - points[POINT][-1])
        time.sleep(PACE)
    return took


@contextmanager
def _others(count: int) -> Iterator[None]:
    """Waiters for transactions that are due long after the benchmark."""
    late = [processor.Transaction(delay=86_400.0).delete("orders", {"id": processor.new_id()})
            for _ in range(count)]  # fmt: skip
    receipts = processor.submit_many(late)
    ending = time.monotonic() + SETTLING

    def wait(receipt: processor.Receipt) -> None:
        receipt.wait(timeout=max(0.0, ending - time.monotonic()))

    threads = [threading.Thread(target=wait, args=(receipt,)) for receipt in receipts]
    for thread in threads:
        thread.start()
    time.sleep(SETTLING / 4)
    yield
    for thread in threads:
        thread.join()


def _bare(stage: Stage, count: int) -> list[float]:
    """How long an entry takes from XADD to a thread that is blocked on its stream."""
    heard: list[float] = []
    listener = redis.Redis.from_url(stage.redis_url)

    def listen() -> None:
        last = b"0-0"
        while len(heard) < count:
            reply = listener.xread({"bare": last}, count=1, block=1000)
            if reply:
                last = reply[0][1][0][0]
                heard.append(time.monotonic())

    thread = threading.Thread(target=listen)
    thread.start()
    sent = []
    for number in range(count):
        while len(heard) < number:
            time.sleep(0)
        time.sleep(PACE)
        sent.append(time.monotonic())
        stage.redis.xadd("bare", {"n": number})
    thread.join()
    listener.close()
    return [at - before for at, before in zip(heard, sent, strict=True)]
