"""Named points between two side effects at which a test can kill the process; otherwise inert.

A point is armed only by `PROCESSOR_CRASHPOINT=name[:n]` together with `PROCESSOR_CRASHPOINTS=armed`
in the environment at import, never by configuration or data. At the n-th visit (default: the first)
the process sends itself SIGKILL, which no handler or buffer can soften.
"""

from __future__ import annotations

import os
import signal

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
    "release-before",
    "release-after",
    "move-added",
    "move-removed",
    "stop-seen",
)


def _armed() -> tuple[str, int]:
    if os.environ.get("PROCESSOR_CRASHPOINTS") != "armed":
        return "", 0
    name, _, nth = os.environ.get("PROCESSOR_CRASHPOINT", "").partition(":")
    return name, int(nth or 1)


_name, _left = _armed()


def reach(name: str) -> None:
    """Mark that execution reached a point; kills the process if a test armed that point."""
    if name == _name:
        _count_down()


def _count_down() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
