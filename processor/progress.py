"""The record of progress that feeds health and the systemd watchdog alike (rule 31).

Progress is a completed pass, a completed call to a server within it, or a declared deadline that
has not passed yet. The drain thread writes it and nobody else: a side thread that pings by itself
proves nothing about the thread that works.
"""

from __future__ import annotations

import time


class Progress:
    """When the drain thread last got something done, on the monotonic clock."""

    __slots__ = ("_at", "_until")

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._until = 0.0

    def made(self) -> None:
        """A pass or a call to a server was completed."""
        self._at = time.monotonic()
        self._until = 0.0

    def declare(self, until: float) -> None:
        """A legal piece of work has begun that ends before `until` (monotonic seconds)."""
        self._until = until

    def age(self, now: float) -> float:
        """Seconds without progress at `now`; zero while a declared deadline has not passed."""
        if now <= self._until:
            return 0.0
        return max(0.0, now - max(self._at, self._until))
