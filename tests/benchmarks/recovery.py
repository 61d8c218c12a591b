"""`recovery`: from kill -9 in the middle of a drain to the next commit, restarted at once.

The limit is a program that does the least: load both drivers, open both connections, commit once.
"""

from __future__ import annotations

import subprocess
import sys
import time

from tests.benchmarks import engine
from tests.benchmarks.child import Child
from tests.benchmarks.options import Options, note
from tests.benchmarks.result import Result, compared
from tests.benchmarks.stage import Stage
from tests.fix_wait import wait_until

# Commits of a process before it is killed.
IN_THE_MIDDLE = 20
LEAST = """
import sys, time, psycopg2, redis
redis.Redis.from_url(sys.argv[1]).ping()
connection = psycopg2.connect(sys.argv[2])
connection.cursor().execute("UPDATE account SET balance = balance + 0 WHERE id = 1")
connection.commit()
print(time.monotonic())
"""


def run(options: Options) -> Result:
    """Seconds, median of the kills."""
    count = options.many(100_000)
    figures, limits = [], []
    with Stage() as stage:
        stage.empty()
        stage.fill(count)
        child = _start(stage)
        try:
            for turn in range(options.turns(5)):
                wait_until(lambda child=child: len(child.commits) > IN_THE_MIDDLE, 60.0)
                begun = time.monotonic()
                child.kill()
                child = _start(stage)
                figures.append(_next_commit(child) - begun)
                child.freeze()
                limits.append(_least(stage))
                child.thaw()
                note(f"kill {turn + 1}: {figures[-1]:.3f} s, the least {limits[-1]:.3f} s, "
                     f"{stage.depth} entries left")  # fmt: skip
            engine.wait_until_empty(stage)
        finally:
            child.kill()
        stage.see_all(count)
    return compared(figures, limits, "s", worst=round(max(figures), 3), n=count)


def _start(stage: Stage) -> Child:
    return Child(stage.redis_server.directory, stage.settings(), "--commits")


def _next_commit(child: Child) -> float:
    child.expect("commit ", 60.0)
    return child.commits[0]


def _least(stage: Stage) -> float:
    begun = time.monotonic()
    command = [sys.executable, "-c", LEAST, stage.redis_url, stage.dsn]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(said) - begun
