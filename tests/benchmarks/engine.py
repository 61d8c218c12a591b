"""A processor in this process that drains the buffer while the benchmark measures it."""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import processor
from tests.benchmarks import cpu
from tests.benchmarks.result import Run
from tests.benchmarks.stage import Stage

PATIENCE = 600.0
# As coarse as acceptable: each check takes the interpreter from the drain thread.
LOOK = 0.005


@dataclass
class Meter:
    """CPU seconds that the drain thread used; it records them when it stops."""

    used: float = 0.0
    profile: cProfile.Profile | None = None

    def begin(self) -> None:
        self.used = -time.thread_time()
        if self.profile:
            self.profile.enable()

    def end(self) -> None:
        if self.profile:
            self.profile.disable()
        self.used += time.thread_time()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Add it to the hooks of the drain thread."""
        processor.hooks.on_start.append(self.begin)
        processor.hooks.on_stop.append(self.end)
        try:
            yield
        finally:
            processor.hooks.on_start.remove(self.begin)
            processor.hooks.on_stop.remove(self.end)
            self._print_profile()

    def _print_profile(self) -> None:
        if self.profile:
            stats = pstats.Stats(self.profile, stream=sys.stderr)
            stats.sort_stats("tottime").print_stats(45)


def drain(stage: Stage, count: int, *, profile: bool = False) -> Run:
    """Drain the `count` entries in the buffer; measure from the wake-up until all are settled.

    This includes opening the sessions, as after a crash.
    """
    meter = Meter(profile=cProfile.Profile() if profile else None)
    with meter.on():
        begun = time.perf_counter()
        processor.start()
        wait_until_decided(stage)
        took = time.perf_counter() - begun
        served = cpu.account(backend(stage))
        if not processor.stop(30.0):
            raise RuntimeError("the processor did not stop")
    return Run(
        count / took, meter.used / count * 1e6, served.used / count * 1e6, served.waited / took
    )


def wait_until_empty(stage: Stage) -> None:
    """Wait until the stream is empty: each entry is committed, parked or a dead letter."""
    _wait(lambda: stage.depth, "entries are left")


def wait_until_decided(stage: Stage) -> None:
    """Wait until nothing is parked either: each failed transaction is a dead letter."""
    _wait(lambda: stage.depth + stage.parked, "entries are undecided")


def _wait(left: Callable[[], int], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while found := left():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} {what}: {processor.state()}")
        time.sleep(LOOK)


def backend(stage: Stage) -> int:
    """Return the pid of the backend that serves the processor; 0 if there is none."""
    rows = stage.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'processor %'"
    )
    return rows[0][0] if rows else 0
