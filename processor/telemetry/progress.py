"""The record of progress that feeds health and the systemd watchdog alike (rule 31).

Progress is a completed pass, a completed call to a server within it, or a declared deadline that
has not passed yet. A pass that fails is none, however many calls it completes before that. The
drain thread writes it and nobody else: a side thread that pings by itself proves nothing about the
thread that works.
"""

from __future__ import annotations

import time


class Progress:
    """When the drain thread last got something done, on the monotonic clock."""

    __slots__ = ("_at", "_failing", "_until", "failure")

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._until = 0.0
        self._failing: float | None = None
        #: What is said of the pass that ended in a defect, until one is completed.
        self.failure = ""

    def made(self) -> None:
        """A call to a server was completed."""
        self._at = time.monotonic()
        self._until = 0.0

    def passed(self) -> None:
        """A pass was completed."""
        self._failing, self.failure = None, ""
        self.made()

    def failed(self, failure: str) -> None:
        """A pass ended in a defect; until one is completed, time counts from the first of these."""
        self.failure = failure
        if self._failing is None:
            self._failing = time.monotonic()

    def declare(self, until: float) -> None:
        """A legal piece of work has begun that ends before `until` (monotonic seconds)."""
        self._until = until

    def age(self, now: float) -> float:
        """Seconds without progress at `now`; zero while a declared deadline has not passed."""
        if now <= self._until:
            return 0.0
        since = max(self._at, self._until) if self._failing is None else self._failing
        return max(0.0, now - since)
