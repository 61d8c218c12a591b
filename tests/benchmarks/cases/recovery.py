"""`recovery`: from kill -9 in the middle of a drain to the next commit, restarted at once.

The limit is a minimal program: it loads both drivers, opens both connections, and commits once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from tests.benchmarks import engine
from tests.benchmarks.child import Service
from tests.benchmarks.options import Options, note
from tests.benchmarks.result import Result, rounded, spread
from tests.benchmarks.stage import Stage
from tests.harness.wait import wait_until

# Minimum number of entries that a process drains before it is killed.
IN_THE_MIDDLE = 2000
LEAST = """
import sys, time, psycopg2, redis
redis.Redis.from_url(sys.argv[1]).ping()
connection = psycopg2.connect(sys.argv[2])
connection.cursor().execute("UPDATE account SET balance = balance + 0 WHERE id = 1")
connection.commit()
print(time.monotonic())
"""


def run(options: Options) -> Result:
    """Return seconds, the median of the kills."""
    count = options.many(100_000)
    figures, limits = [], []
    with Stage() as stage:
        stage.empty()
        stage.fill(count)
        service = Service(stage.redis_server.directory, stage.settings())
        try:
            for turn in range(options.turns(5)):
                _drained(stage, service, stage.depth - IN_THE_MIDDLE)
                epoch, applied = _lane(stage)
                begun = time.monotonic()
                service.kill()
                service = Service(stage.redis_server.directory, stage.settings())
                figures.append(_next_commit(stage, epoch, applied) - begun)
                service.freeze()
                limits.append(_least(stage))
                service.thaw()
                note(f"kill {turn + 1}: {figures[-1]:.3f} s, at best {limits[-1]:.3f} s, "
                     f"{stage.depth} entries left")  # fmt: skip
            engine.wait_until_empty(stage)
        finally:
            service.kill()
        stage.see_all(count)
    return Result(
        median(figures), "s", median(limits),
        {"worst": rounded(max(figures)), "spread": spread(figures), "rounds": len(figures)},
    )  # fmt: skip


def _drained(stage: Stage, service: Service, depth: int) -> None:
    wait_until(lambda: stage.depth <= max(0, depth), 60.0, lambda: f"drain:\n{service.output}")
    if not stage.depth:
        raise RuntimeError("drained before it could be killed: ask for more (-n)")


def _next_commit(stage: Stage, epoch: int, applied: int) -> float:
    """Return the time of the new owner's first commit.

    A batch that the killed owner had sent may still be committed before.
    """

    def committed() -> float:
        nonlocal applied
        now, count = _lane(stage)
        if now == epoch:
            applied = count
        return time.monotonic() if now > epoch and count > applied else 0.0

    return wait_until(committed, 60.0, poll=0.002)


def _lane(stage: Stage) -> tuple[int, int]:
    """Return the epoch of the owner and the number of transactions committed by all owners."""
    rows = stage.execute("SELECT epoch, applied FROM processor.lane WHERE lane = 'default:0'")
    return rows[0] if rows else (0, 0)


def _least(stage: Stage) -> float:
    begun = time.monotonic()
    command = [sys.executable, "-c", LEAST, stage.redis_url, stage.dsn]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(said) - begun
