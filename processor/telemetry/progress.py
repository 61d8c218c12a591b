"""When the drain thread last made progress, for health and the systemd watchdog alike (rule 31).

Progress is a completed pass, a completed server call within it, or a declared deadline that has not
passed yet. A pass that fails is no progress, however many calls it completed. Only the drain thread
writes the record: a side thread that reports on its own proves nothing about the drain thread.
"""

from __future__ import annotations

import time


class Progress:
    """When the drain thread last made progress, on the monotonic clock."""

    __slots__ = ("_at", "_failing", "_until", "failure")

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._until = 0.0
        self._failing: float | None = None
        #: What went wrong in the last pass, if it raised; empty once a pass has completed.
        self.failure = ""

    def made(self) -> None:
        """Note that a call to a server has completed."""
        self._at = time.monotonic()
        self._until = 0.0

    def passed(self) -> None:
        """Note that a pass has completed."""
        self._failing, self.failure = None, ""
        self.made()

    def failed(self, failure: str) -> None:
        """Note that a pass raised. Until one completes, the age counts from the first failure."""
        self.failure = failure
        if self._failing is None:
            self._failing = time.monotonic()

    def declare(self, until: float) -> None:
        """Allow the work that begins now to take until `until` (monotonic seconds)."""
        self._until = until

    def age(self, now: float) -> float:
        """Seconds without progress at `now`; zero until a declared deadline has passed."""
        if now <= self._until:
            return 0.0
        since = max(self._at, self._until) if self._failing is None else self._failing
        return max(0.0, now - since)
