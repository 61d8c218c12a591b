"""`link`: how often a batch crosses a link of 200 ms, clean and with 1 % poison.

A proxy in front of PostgreSQL counts from the first settled batch to the last. The count includes
everything, retries and dead letters too, except the opening of the session.
"""

from __future__ import annotations

import time

import processor
from processor.config import loader
from tests.benchmarks import engine
from tests.benchmarks.options import Options, note
from tests.benchmarks.orders import orders
from tests.benchmarks.replay import PREPARED, batches
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.sentences import counted
from tests.benchmarks.stage import Stage
from tests.harness.proxy import Proxy, ready_for_query
from tests.harness.wait import wait_until

ROUND_TRIP = 0.2
POISON = 0.01
# Short, so that the retries fall into the measured time.
DELAY = 1.0


def run(options: Options) -> Result:
    """Return round trips per batch; the limit is that of ready-made batches on the same link."""
    count = options.many(20_000)
    with Stage() as stage:
        port = stage.postgres_server.port
        proxy = Proxy(("127.0.0.1", port), answered=ready_for_query, server=stage.postgres_server)
        try:
            return _through(proxy, stage, count, options.profile)
        finally:
            processor.stop(30.0)
            proxy.close()


def _through(proxy: Proxy, stage: Stage, count: int, profile: bool) -> Result:
    stage.configure(database={"dsn": proxy.dsn_of()}, retry={"delay": DELAY})
    proxy.latency(ROUND_TRIP)
    stage.empty()
    limit = _replayed(stage, proxy)
    with counted(profile, "clean"):
        clean, rate = _drained(stage, proxy, count, 0.0)
    note(f"clean: {clean:.3f} round trips a batch, {rate:,.0f} tx/s")
    with counted(profile, "with poison"):
        poison, poison_rate = _drained(stage, proxy, count, POISON)
    note(f"with poison: {poison:.3f} round trips a batch, {poison_rate:,.0f} tx/s")
    return Result(
        clean, "round trips a batch", limit,
        {"poison": rounded(poison), "rate": rounded(rate), "poison_rate": rounded(poison_rate),
         "round_trip": ROUND_TRIP, "batch": loader.current().batch.entries, "n": count},
    )  # fmt: skip


def _replayed(stage: Stage, proxy: Proxy) -> float:
    ready = batches(list(orders(2500)))
    connection = stage.connect(proxy.dsn_of())
    with connection.cursor() as cursor:
        cursor.execute(PREPARED)
        before = proxy.round_trips
        for batch in ready:
            cursor.execute(batch)
        # Before the session closes, which is a burst too.
        trips = proxy.round_trips - before
    connection.close()
    return trips / len(ready)


def _drained(stage: Stage, proxy: Proxy, count: int, poison: float) -> tuple[float, float]:
    """Return round trips per batch and transactions per second."""
    stage.empty()
    stage.fill(count, poison=poison)
    processor.start()
    wait_until(lambda: stage.depth < count, 60.0)
    left, trips, begun = stage.depth, proxy.round_trips, time.monotonic()
    engine.wait_until_empty(stage)
    trips, took = proxy.round_trips - trips, time.monotonic() - begun
    engine.wait_until_decided(stage)
    processor.stop(30.0)
    return trips / (left / loader.current().batch.entries), left / took
