"""One count of everything that the demo shows, and its history."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Rates are measured over this time, in seconds.
_SPAN = 1.0
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """The counts at one time, `at` seconds after the start."""

    at: float
    accepted: int
    buffered: int
    committed: int
    replayed: int
    postgres: str
    processor: str

    @property
    def behind(self) -> int:
        """Committed transactions that the replica has not replayed yet."""
        return max(0, self.committed - self.replayed)


class History:
    """The counts so far, and the rates between them."""

    def __init__(self) -> None:
        self._recent: deque[Figures] = deque()
        self.now = Figures(0.0, 0, 0, 0, 0, "", "")
        self.accepting: deque[float] = deque([0.0], _KEPT)
        self.committing: deque[float] = deque([0.0], _KEPT)
        self.behind: deque[float] = deque([0.0], _KEPT)
        self.buffered: deque[float] = deque([0.0], _KEPT)

    def add(self, figures: Figures) -> None:
        """Append one count."""
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
