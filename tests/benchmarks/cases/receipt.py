"""`receipt`: from commit to a waiter's return, beside a bare XADD received by a blocked XREAD.

The figure is the median of a waiter among a thousand. The others, each in its own thread of the
same process, wait for transactions that are not due. The processor is in this process too.

`alone` is the same without the others. `together` is a thousand waiters whose transactions are
committed at the same moment: they return one after the other, as the interpreter allows.
`replicated` is from commit to the return of a wait for "replicated", on a standby on this host. It
includes the replay and the queries to the standby, which start at an interval of 5 ms.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, quantiles

import redis

import processor
from processor.embedded import Standby
from tests.benchmarks.commits import POINT, note_points
from tests.benchmarks.options import Options
from tests.benchmarks.orders import orders, transaction
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import Stage

PACE = 0.01
#: Seconds for which the others wait.
SETTLING = 20.0
CROWD = 1000


def run(options: Options) -> Result:
    """Return milliseconds, the median of all samples."""
    count = options.many(300)
    points: dict[str, list[float]] = defaultdict(list)
    note_points(lambda name, at: points[name].append(at))
    with Stage() as stage:
        stage.empty()
        together = _together(points)
        processor.start()
        bare = _bare(stage, count)
        alone = _single(count, points)
        with _others(CROWD - 1):
            among = _single(count, points)
        processor.stop()
        replicated = _replicated(stage, count, points)
    return Result(
        1e3 * median(among), "ms", 1e3 * median(bare),
        {"p95": rounded(1e3 * quantiles(among, n=20)[-1]), "alone": _ms(alone),
         "together": _ms(together), "replicated": _ms(replicated), "waiters": CROWD, "n": count},
    )  # fmt: skip


def _ms(seconds: list[float]) -> float:
    return rounded(1e3 * median(seconds))


def _single(count: int, points: dict[str, list[float]], until: str = "committed") -> list[float]:
    took = []
    for order in orders(count, seed=time.monotonic_ns()):
        points.clear()
        reached = processor.submit(transaction(order)).wait(until, 10.0)
        took.append(time.monotonic() - points[POINT][-1])
        if reached.state != until:
            raise RuntimeError(f"a transaction is {reached.state}, not {until}")
        time.sleep(PACE)
    return took


def _together(points: dict[str, list[float]]) -> list[float]:
    """Start waiters for a backlog that is committed in a few batches."""
    receipts = processor.submit_many([transaction(order) for order in orders(CROWD)])
    returned: list[tuple[int, float]] = []

    def wait(receipt: processor.Receipt) -> None:
        position = receipt.wait(timeout=60.0).position
        returned.append((position.lsn if position else 0, time.monotonic()))

    threads = [threading.Thread(target=wait, args=(receipt,)) for receipt in receipts]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    points.clear()
    processor.start()
    for thread in threads:
        thread.join()
    processor.stop()
    commits = dict(zip(sorted({lsn for lsn, _ in returned}), points[POINT], strict=False))
    return [at - commits[lsn] for lsn, at in returned]


def _replicated(stage: Stage, count: int, points: dict[str, list[float]]) -> list[float]:
    with Standby.of(stage.postgres_server) as standby:
        stage.configure(replicas={"servers": {"standby": standby.dsn}})
        processor.start()
        _single(1, points, "replicated")
        took = _single(count, points, "replicated")
        processor.stop()
    return took


@contextmanager
def _others(count: int) -> Iterator[None]:
    """Start waiters for transactions that are due long after the benchmark."""
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
    """Measure the time from an XADD to a thread that is blocked on the stream."""
    received: list[float] = []
    listener = redis.Redis.from_url(stage.redis_url)

    def listen() -> None:
        last = b"0-0"
        while len(received) < count:
            reply = listener.xread({"bare": last}, count=1, block=1000)
            if reply:
                last = reply[0][1][0][0]
                received.append(time.monotonic())

    thread = threading.Thread(target=listen)
    thread.start()
    sent = []
    for number in range(count):
        while len(received) < number:
            time.sleep(0)
        time.sleep(PACE)
        sent.append(time.monotonic())
        stage.redis.xadd("bare", {"n": number})
    thread.join()
    listener.close()
    return [at - before for at, before in zip(received, sent, strict=True)]
