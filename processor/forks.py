"""Renews what a process did not make itself: after a fork, and after its threads turned green.

In a forked child, locks may be held by threads that exist only in the parent, and connections
belong to the parent (P6). Python calls hooks for its own forks, but a server written in C, such as
uWSGI, forks without them. gevent replaces locks and threads, in a worker of gunicorn only after the
fork: waiting for a lock from before would block all green threads of the process.

So every way into this package that may be the first of a process calls `notice` (rule 110).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

_renewals: list[Callable[[], None]] = []
_pid = os.getpid()
_lock_kind: Any = threading.Lock
#: One lock for each process and kind: that of the parent may be held for ever in the child.
_locks: dict[Any, Any] = {}


def renew_with(renewal: Callable[[], None]) -> None:
    """Have `renewal` called in every process that did not call this itself."""
    _renewals.append(renewal)


def notice() -> None:
    """Renew everything if this is another process than before, or has locks of another kind."""
    if os.getpid() != _pid or threading.Lock is not _lock_kind:
        _renew()


def _renew() -> None:
    global _pid, _lock_kind
    here, kind = os.getpid(), threading.Lock
    with _locks.setdefault((here, kind), kind()):
        if (here, kind) != (_pid, _lock_kind):
            for renewal in _renewals:
                renewal()
            _pid, _lock_kind = here, kind


os.register_at_fork(after_in_child=notice)
