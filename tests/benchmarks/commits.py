"""When batches were committed, as the thread that commits them sees it.

The crash point behind the reply to COMMIT is the one place that all ways of applying pass.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence

from processor import crashpoint

POINT = "batch-committed"


def note_commits(tell: Callable[[float], None]) -> None:
    """From now on `tell` the time (monotonic, the same for all processes) of each commit."""
    reach = crashpoint.reach

    def noting(name: str) -> None:
        if name == POINT:
            tell(time.monotonic())
        reach(name)

    crashpoint.reach = noting


def waits(submitted: Sequence[float], committed: Sequence[float]) -> list[float]:
    """Seconds from each submit to the first commit after it."""
    ends = sorted(committed)
    return [ends[bisect.bisect(ends, begun)] - begun for begun in submitted]
