"""The limit of a drain: ready-made batches of EXECUTE, one psycopg2 connection, nothing else.

Without Redis, JSON and ledger: the time of PostgreSQL and its driver if the work of the processor
cost nothing.
"""

from __future__ import annotations

import time

from tests.benchmarks import cpu
from tests.benchmarks.orders import Order, orders
from tests.benchmarks.result import Run
from tests.benchmarks.stage import Stage

BATCH = 500
PREPARED = """
    PREPARE add_order (uuid, int, int) AS INSERT INTO orders VALUES ($1, $2, $3);
    PREPARE add_amount (int, int) AS UPDATE account SET balance = balance + $2 WHERE id = $1;
"""


def replay(stage: Stage, count: int) -> Run:
    """Commit `count` orders in batches; all strings are made before the clock starts."""
    ready = batches(list(orders(count)))
    connection = stage.connect()
    with connection.cursor() as cursor:
        cursor.execute(PREPARED)
        pid = connection.info.backend_pid
        begun, here, there = time.perf_counter(), time.thread_time(), cpu.account(pid)
        for batch in ready:
            cursor.execute(batch)
        took, used = time.perf_counter() - begun, time.thread_time() - here
        served = cpu.account(pid)
    connection.close()
    return Run(
        count / took, used / count * 1e6, (served.used - there.used) / count * 1e6,
        (served.waited - there.waited) / took,
    )  # fmt: skip


def batches(all_orders: list[Order]) -> list[str]:
    """Return ready-made strings, each one round trip and one commit."""
    return [
        "BEGIN;" + "".join(map(_executes, all_orders[start : start + BATCH])) + "COMMIT"
        for start in range(0, len(all_orders), BATCH)
    ]


def _executes(order: Order) -> str:
    id, account, amount = order
    return (
        f"EXECUTE add_order('{id}', {account}, {amount});"
        f"EXECUTE add_amount({account}, {amount});"
    )
