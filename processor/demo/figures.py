"""One look at everything that the demo shows, and its course over time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Speeds are over this long, seconds.
_SPAN = 1.0
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted `at` so many seconds after the beginning."""

    at: float
    accepted: int
    buffered: int
    committed: int
    replayed: int
    postgres: str
    processor: str

    @property
    def behind(self) -> int:
        """Transactions that the replica does not show yet."""
        return max(0, self.committed - self.replayed)


class Course:
    """The looks so far, and the speeds between them."""

    def __init__(self) -> None:
        self._recent: deque[Figures] = deque()
        self.now = Figures(0.0, 0, 0, 0, 0, "", "")
        self.accepting: deque[float] = deque([0.0], _KEPT)
        self.committing: deque[float] = deque([0.0], _KEPT)
        self.behind: deque[float] = deque([0.0], _KEPT)
        self.buffered: deque[float] = deque([0.0], _KEPT)

    def add(self, figures: Figures) -> None:
        """Note one look."""
        self.now = figures
        self._recent.append(figures)
        while len(self._recent) > 2 and self._recent[1].at <= figures.at - _SPAN:
            self._recent.popleft()
        first = self._recent[0]
        span = max(figures.at - first.at, _SPAN / 4)
        self.accepting.append((figures.accepted - first.accepted) / span)
        self.committing.append((figures.committed - first.committed) / span)
        self.buffered.append(figures.buffered)
        self.behind.append(figures.behind)
