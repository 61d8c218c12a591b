"""`read`: a row by its key through the overlay, beside a plain SELECT of the same row.

10,000 operations are pending, and no processor drains. The figure is for reads of rows with one
pending addition each. The limit is the SELECT of the same row by an application, with psycopg2,
parameters and rows as dicts. They take turns, row by row, on one host.

`many`: ten pending additions per row. `orders`: each addition comes with an order whose key decides
whether it counts, so this key is read too. `idle`: rows without pending writes. `session` is the
ratio of the figure to the SELECT over a session like that of `processor.read`. `far` has the ratios
with PostgreSQL one millisecond away, as in the next rack, and Redis on this host.
"""

from __future__ import annotations

import cProfile
import pstats
import random
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median, quantiles
from typing import Any

from psycopg2.extras import RealDictCursor

import processor
from processor.config import loader
from processor.connections.postgres_session import PostgresSession
from processor.reads import reader
from processor.telemetry.progress import Progress
from tests.benchmarks.options import Options, note
from tests.benchmarks.orders import ACCOUNTS, orders, transaction
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import Stage
from tests.harness.proxy import Proxy, ready_for_query

PENDING = 10_000
ROUND_TRIP = 0.001
WARM = 100
TABLES = {"account": "id", "orders": "id"}

#: A session like that of `processor.read`, and a cursor like that of an application.
Plain = tuple[PostgresSession, Any]
#: Times of reads, of plain SELECTs, and of SELECTs over a session like that of `processor.read`.
Times = tuple[list[float], list[float], list[float]]


def run(options: Options) -> Result:
    """Return microseconds, the median."""
    count = options.many(1000)
    with Stage() as stage:
        server = stage.postgres_server
        proxy = Proxy(("127.0.0.1", server.port), answered=ready_for_query, server=server)
        try:
            _prepare(stage)
            here = _all(stage, count, stage.dsn, options.profile)
            proxy.latency(ROUND_TRIP)
            there = _all(stage, count, proxy.dsn_of(), False)
        finally:
            reader.close()
            proxy.close()
    merged, plain, session = here["one"]
    return Result(
        1e6 * median(merged), "us", 1e6 * median(plain),
        {"p99": _p99(merged), "limit_p99": _p99(plain),
         "session": rounded(median(merged) / median(session)),
         **{name: _ratio(each) for name, each in here.items() if name != "one"},
         "far": {name: _ratio(each) for name, each in there.items()},
         "round_trip": ROUND_TRIP, "pending": PENDING, "n": count},
    )  # fmt: skip


def _prepare(stage: Stage) -> None:
    """Create tables with rows, and a ledger with as many transactions as are pending."""
    stage.configure(overlay={"tables": TABLES})
    stage.empty()
    stage.execute(f"INSERT INTO account (id) SELECT generate_series({ACCOUNTS} + 1, 30000)")
    processor.start()
    last = processor.submit_many(_additions(PENDING, 1))[-1]
    last.result(60)
    processor.stop()


def _all(stage: Stage, count: int, dsn: str, profile: bool) -> dict[str, Times]:
    stage.configure(overlay={"tables": TABLES}, database={"dsn": dsn})
    session = PostgresSession(
        loader.current().database, Progress(), application="benchmark", writes=False
    )
    session.connect()
    cursor = stage.connect(dsn).cursor(cursor_factory=RealDictCursor)
    plain = (session, cursor)
    try:
        return {
            "one": _with(stage, plain, count, _additions(PENDING, PENDING), PENDING, profile),
            "many": _with(stage, plain, count, _additions(PENDING, ACCOUNTS), ACCOUNTS, profile),
            "orders": _with(
                stage, plain, count, map(transaction, orders(PENDING // 2)), ACCOUNTS, profile
            ),
            "idle": _in_turns(plain, count, PENDING + 1, 30_000),
        }
    finally:
        session.close()


def _additions(count: int, accounts: int) -> Iterable[processor.Transaction]:
    for n in range(count):
        where = {"id": n % accounts + 1}
        yield processor.Transaction().update("account", add={"balance": 1}, where=where)


def _with(
    stage: Stage, plain: Plain, count: int, pending: Iterable[processor.Transaction],
    accounts: int, profile: bool,
) -> Times:  # fmt: skip
    stage.redis.flushall()
    processor.submit_many(pending)
    times = _in_turns(plain, count, 1, accounts)
    if profile:
        _profile(count, accounts)
    note(f"{1e6 * median(times[0]):.0f} us beside {1e6 * median(times[1]):.0f} us")
    return times


def _in_turns(plain: Plain, count: int, low: int, high: int) -> Times:
    chance = random.Random(1)
    session, cursor = plain
    merged, selected, written = [], [], []
    for _ in range(WARM + count):
        account = chance.randint(low, high)
        sql = f"SELECT id, balance FROM account WHERE id = {account}"
        selected.append(_timed(lambda account=account: _select(cursor, account)))
        merged.append(_timed(lambda account=account: _read(account)))
        written.append(_timed(lambda sql=sql: session.run(sql)))
    return merged[WARM:], selected[WARM:], written[WARM:]


def _select(cursor: Any, account: int) -> list[dict[str, Any]]:
    cursor.execute("SELECT id, balance FROM account WHERE id = %s", (account,))
    return [dict(row) for row in cursor]


def _read(account: int) -> None:
    rows = processor.read("account", {"id": account})
    if len(rows) != 1 or not rows.complete:
        raise RuntimeError(f"account {account}: {len(rows)} rows")


def _timed(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _ratio(times: Times) -> float:
    return rounded(median(times[0]) / median(times[1]))


def _p99(seconds: list[float]) -> float:
    return rounded(1e6 * quantiles(seconds, n=100)[98])


def _profile(count: int, accounts: int) -> None:
    chance = random.Random(2)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(count):
        _read(chance.randint(1, accounts))
    profile.disable()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(30)
