"""Delays a fork while a thread of this process resolves a server's address.

The C library holds a lock of its own while it resolves. If the process forks at that moment, the
lock stays held in the child, which can then never connect to a server (P6).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from processor import forks

#: The longest that a fork waits for slow name servers, seconds.
_MAX_WAIT = 0.2

_free = threading.Condition()
_busy = 0


@contextlib.contextmanager
def resolving() -> Iterator[None]:
    """Wrap code that resolves an address; many threads may do so at once."""
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
    # The lock is held until after the fork, so that no thread starts to resolve meanwhile.
    _free.acquire()
    _free.wait_for(lambda: not _busy, _MAX_WAIT)


def _after_fork_in_parent() -> None:
    _free.release()


def _renew() -> None:
    global _free, _busy
    _free, _busy = threading.Condition(), 0


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
forks.renew_with(_renew)
