"""When batches were committed, as the thread that commits them sees it.

The crash point behind the reply to COMMIT is the one place that all ways of applying pass.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence

from processor import crashpoint

POINT = "batch-committed"


def note_points(tell: Callable[[str, float], None]) -> None:
    """From now on `tell` each crash point that is passed, and when.

    Monotonic time, which is the same for all processes of a machine.
    """
    reach = crashpoint.reach

    def noting(name: str) -> None:
        tell(name, time.monotonic())
        reach(name)

    crashpoint.reach = noting


def note_commits(tell: Callable[[float], None]) -> None:
    """From now on `tell` the time of each commit."""
    note_points(lambda name, at: tell(at) if name == POINT else None)


def waits(begun: Sequence[float], ended: Sequence[float]) -> list[float]:
    """Seconds from each beginning to the first end after it."""
    ends = sorted(ended)
    return [ends[bisect.bisect(ends, at)] - at for at in begun if at < ends[-1]]
