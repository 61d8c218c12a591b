"""The Event that wakes the drain thread.

It is defined here, below both the producer and the runtime, so that a producer can wake the thread
without importing the drain.

The Event is one object for the life of the process: an application may keep a reference to it. It
starts set, so that the first pass runs at once. In a forked child it is re-initialised in place
(rule 29).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

event = threading.Event()
event.set()

_revive: Callable[[], object] | None = None


def wake() -> None:
    """Set the Event; in a forked child whose parent had a running thread, start it again first."""
    revive = _revive
    if revive is not None:
        revive()
    # Setting takes a lock. An Event that is set already will be cleared before the thread looks.
    if not event.is_set():
        event.set()


def revive_with(start: Callable[[], object] | None) -> None:
    """Have the next `wake` call `start` first; None: it only sets the Event."""
    global _revive
    _revive = start


def _after_fork() -> None:
    # In place: the application may have held the Event since before the fork. Another thread of the
    # parent may have held its lock at that moment.
    event.__init__()  # type: ignore[misc]
    event.set()


os.register_at_fork(after_in_child=_after_fork)
