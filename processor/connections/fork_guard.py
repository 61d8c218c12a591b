"""No fork while one of our threads looks up a server's address.

The C library holds a lock of its own meanwhile. Forked at that moment the child would have it held
for ever, and never reach a server (P6).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

#: A fork waits no longer for addresses that are slow to be found, seconds.
_PATIENCE = 0.2

_free = threading.Condition()
_busy = 0


@contextlib.contextmanager
def resolving() -> Iterator[None]:
    """Around whatever looks up an address; many threads may at a time."""
    global _busy
    with _free:
        _busy += 1
    try:
        yield
    finally:
        with _free:
            _busy -= 1
            _free.notify_all()


def _before_fork() -> None:
    # Kept until after the fork, so that nobody begins meanwhile.
    _free.acquire()
    _free.wait_for(lambda: not _busy, _PATIENCE)


def _after_fork_in_parent() -> None:
    _free.release()


def _after_fork_in_child() -> None:
    global _free, _busy
    _free, _busy = threading.Condition(), 0


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)  # fmt: skip
