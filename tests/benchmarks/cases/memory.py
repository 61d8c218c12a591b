"""`memory`: resident memory that draining a long backlog adds to an idle processor.

The limit is what a tenth of the backlog adds: a ratio near one means that memory is flat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks import engine
from tests.benchmarks.child import Child
from tests.benchmarks.options import Options, note
from tests.benchmarks.result import Result, rounded
from tests.benchmarks.stage import Stage
from tests.harness.wait import wait_until


def run(options: Options) -> Result:
    """Return MB: the peak while draining, less the memory while idle."""
    count = options.many(200_000)
    with Stage() as stage:
        short, _ = added(stage, max(1, count // 10))
        more, idle = added(stage, count)
        return Result(more, "MB", short, {"idle": rounded(idle), "n": count})


def added(stage: Stage, count: int, **settings: Any) -> tuple[float, float]:
    """Return the MB added by draining `count` entries, and the MB before, idle and connected."""
    stage.empty()
    stage.pause()
    child = Child(stage.redis_server.directory, stage.settings(**settings))
    try:
        child.expect("up")
        wait_until(lambda: stage.lane_status() == "paused", 30.0)
        idle = _resident(child.pid, "VmRSS")
        stage.fill(count)
        stage.resume()
        engine.wait_until_empty(stage)
        peak = _resident(child.pid, "VmHWM")
    finally:
        child.kill()
    stage.see_all(count)
    note(f"{count:,} entries: {idle:.1f} MB idle, {peak:.1f} MB at most")
    return peak - idle, idle


def _resident(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel reports no {name}")
