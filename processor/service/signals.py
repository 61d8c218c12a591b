"""Signals for the main thread of a service: the handler records, the loop that waits here acts.

The main thread does nothing else, so it acts on a signal at once, whatever the drain thread is
doing; a driver's call in the main thread would delay the handler until the call returned. Signals
are caught, not blocked: a blocked signal would stay blocked in every program that a task starts.
"""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType
from typing import Any


class Signals:
    """Records `signums` while the `with` block runs; for the main thread only."""

    def __init__(self, *signums: signal.Signals) -> None:
        self._signums = signums
        self._before: dict[signal.Signals, Any] = {}
        self._reading, self._writing = socket.socketpair()
        self._previous = -1

    def __enter__(self) -> Signals:
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        # The interpreter itself writes the number of the signal, even between two bytecodes, so no
        # signal is lost between a check and a wait. If the buffer is full, it holds enough signals.
        self._previous = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._before = {each: signal.signal(each, _ignore) for each in self._signums}
        return self

    def wait(self, timeout: float) -> signal.Signals | None:
        """The next signal that arrived; None after `timeout` seconds or for a foreign signal."""
        readable, _, _ = select.select([self._reading], [], [], max(0.0, timeout))
        number = self._reading.recv(1) if readable else b""
        return next((each for each in self._signums if number == bytes([each])), None)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._previous)
        self._reading.close()
        self._writing.close()


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """Does nothing: without a Python handler the interpreter would not write the number."""
