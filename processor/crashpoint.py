"""Named points between two side effects at which a test can kill the process; otherwise inert.

A point is armed only by `PROCESSOR_CRASHPOINT=name[:n]` together with `PROCESSOR_CRASHPOINTS=armed`
in the environment at import, never by configuration or data. At the n-th visit (default: the first)
the process sends itself SIGKILL, which no handler or buffer can soften. With `name:n:freeze` it
sends itself SIGSTOP instead, so that a test can have another process take over and then wake it.
"""

from __future__ import annotations

import os
import signal
import threading

#: Every crash point, in the order in which a batch reaches them.
NAMES = (
    "submit-before-add",
    "submit-after-add",
    "pass-start",
    "lane-owned",
    "batch-read",
    "batch-decoded",
    "batch-rendered",
    "batch-sent",
    "batch-committed",
    "note-before",
    "settle-before",
    "settle-after",
    "isolate-before",
    "isolate-after",
    "park-before",
    "park-lines",
    "park-body",
    "park-after",
    "dead-before",
    "dead-after",
    "retry-before",
    "retry-recorded",
    "release-before",
    "release-due",
    "release-lines",
    "release-records",
    "release-after",
    "move-added",
    "move-removed",
    "stop-seen",
)


def _armed() -> tuple[str, int, int]:
    if os.environ.get("PROCESSOR_CRASHPOINTS") != "armed":
        return "", 0, signal.SIGKILL
    name, nth, action = (os.environ.get("PROCESSOR_CRASHPOINT", "") + "::").split(":")[:3]
    return name, int(nth or 1), signal.SIGSTOP if action == "freeze" else signal.SIGKILL


_name, _left, _signal = _armed()


def reach(name: str) -> None:
    """Mark that execution reached a point; kills the process if a test armed that point."""
    if name == _name:
        _count_down()


def _count_down() -> None:
    global _left
    _left -= 1
    if _left == 0:
        # To this thread: another one would take a moment to stop this one.
        signal.pthread_kill(threading.get_ident(), _signal)
