"""When batches were committed, as the thread that commits them sees it.

Every way of applying a batch passes the crash point behind the reply to COMMIT.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence

from processor import crashpoint

POINT = "batch-committed"


def note_points(report: Callable[[str, float], None]) -> None:
    """Call `report` with the name of each crash point that is passed, and the time.

    The time is monotonic, which is the same for all processes of a machine.
    """
    reach = crashpoint.reach

    def noting(name: str) -> None:
        report(name, time.monotonic())
        reach(name)

    crashpoint.reach = noting


def note_commits(report: Callable[[float], None]) -> None:
    """Call `report` with the time of each commit."""
    note_points(lambda name, at: report(at) if name == POINT else None)


def waits(begun: Sequence[float], ended: Sequence[float]) -> list[float]:
    """Return the seconds from each beginning to the first end after it."""
    ends = sorted(ended)
    return [ends[bisect.bisect(ends, at)] - at for at in begun if at < ends[-1]]
