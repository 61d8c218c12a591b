"""The Event that wakes the drain thread.

It is defined here, below both the producer and the runtime, so that a producer can wake the thread
without importing the drain.

The Event is one object for the life of the process: an application may keep a reference to it. It
starts set, so that the first pass runs at once. In a forked child it is re-initialised in place
(rule 29).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from processor import forks
from processor.telemetry import faults

log = logging.getLogger("processor.telemetry")

event = threading.Event()
event.set()

_revive: Callable[[], object] | None = None


def wake() -> None:
    """Set the Event; in a forked child whose parent had a running thread, start it again first."""
    forks.notice()
    wake_here()


def wake_here() -> None:
    """Do the same as `wake`, for a caller that has called `forks.notice` itself."""
    revive = _revive
    if revive is not None:
        try:
            revive()
        except Exception as error:
            # The transaction of the caller is accepted, whatever becomes of the thread.
            log.error("the drain thread did not start after a fork: %s", faults.place(error))
    # Setting takes a lock. An Event that is set already will be cleared before the thread looks.
    if not event.is_set():
        event.set()


def revive_with(start: Callable[[], object] | None) -> None:
    """Have the next `wake` call `start` first; None: it only sets the Event."""
    global _revive
    _revive = start


def _renew() -> None:
    # In place: the application may have held the Event since before the fork. Another thread of the
    # parent may have held its lock at that moment.
    event.__init__()  # type: ignore[misc]
    event.set()


forks.renew_with(_renew)
