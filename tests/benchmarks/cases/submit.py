"""`submit`: the time to accept a transaction, beside a bare XADD of the same bytes.

They take turns, call by call. The transactions are built before; `built` includes building them.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import processor
from tests.benchmarks.options import Options
from tests.benchmarks.orders import Order, orders, transaction
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import STREAM, Stage

WARM = 200


def run(options: Options) -> Result:
    """Return microseconds, the median; and how many per second `submit_many` accepts."""
    count = options.many(5000)
    with Stage() as stage:
        bare, plain, built = _one_by_one(stage, count)
        many = [_many(stage, 50_000) for _ in range(options.turns(3))]
        if options.profile:
            _profile(count)
    return Result(
        1e6 * median(plain), "us", 1e6 * median(bare),
        {"p99": _p99(plain), "limit_p99": _p99(bare), "built": rounded(1e6 * median(built)),
         "submit_many": rounded(median(each[0] for each in many)),
         "submit_many_built": rounded(median(each[1] for each in many)),
         "pipelined_xadd": rounded(median(each[2] for each in many)), "n": count},
    )  # fmt: skip


def _one_by_one(stage: Stage, count: int) -> tuple[list[float], list[float], list[float]]:
    body = _body(stage)
    bare, plain, built = [], [], []
    for order, other in zip(orders(WARM + count), orders(WARM + count), strict=True):
        ready = transaction(order)
        bare.append(_timed(lambda: stage.redis.xadd("bare", {"v": "1", "tx": body})))
        plain.append(_timed(lambda ready=ready: processor.submit(ready)))
        built.append(_timed(lambda other=other: processor.submit(transaction(other))))
    return bare[WARM:], plain[WARM:], built[WARM:]


def _body(stage: Stage) -> bytes:
    """Return the body of an order as in the stream."""
    processor.submit(transaction(next(orders(1))))
    fields = stage.redis.xrange(STREAM, count=1)[0][1]
    return bytes(fields[b"tx"])


def _many(stage: Stage, count: int) -> tuple[float, float, float]:
    """Return rates per second: built before, built in between, and bare XADDs in pipelines."""
    ready = list(map(transaction, orders(count)))
    plain = _timed(lambda: processor.submit_many(ready))
    raw: list[Order] = list(orders(count))
    built = _timed(lambda: processor.submit_many(map(transaction, raw)))
    bare = _timed(lambda: _pipelined(stage, _body(stage), count))
    stage.redis.delete(STREAM, "bare")
    return count / plain, count / built, count / bare


def _pipelined(stage: Stage, body: bytes, count: int) -> None:
    for _ in range(count // 500):
        pipeline = stage.redis.pipeline(transaction=False)
        for _ in range(500):
            pipeline.xadd("bare", {"v": "1", "tx": body})
        pipeline.execute()


def _timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _p99(seconds: list[float]) -> float:
    return rounded(1e6 * quantiles(seconds, n=100)[98])


def _profile(count: int) -> None:
    ready = list(map(transaction, orders(count)))
    profile = cProfile.Profile()
    profile.enable()
    for each in ready:
        processor.submit(each)
    profile.disable()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(30)
