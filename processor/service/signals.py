"""Signals for the main thread of a service: a handler notes, the loop that waits here acts.

The main thread of a service does nothing else, so a signal is answered at once, whatever the drain
thread is doing; a driver's call in the main thread would hold the handler back until it returned.
Signals are caught and not blocked: a blocked one would stay blocked in every program that a task
starts.
"""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """Notes `signums` from entering to leaving; for the main thread only."""

    def __init__(self, *signums: signal.Signals) -> None:
        self._signums = signums
        self._before: dict[signal.Signals, Any] = {}
        self._noted, self._notes = socket.socketpair()
        self._previous = -1

    def __enter__(self) -> Signals:
        self._noted.setblocking(False)
        self._notes.setblocking(False)
        # The interpreter itself writes the signal's number, even between two bytecodes, so that
        # none is lost between a look and a wait. A full buffer holds plenty already.
        self._previous = signal.set_wakeup_fd(self._notes.fileno(), warn_on_full_buffer=False)
        self._before = {each: signal.signal(each, _noted) for each in self._signums}
        return self

    def wait(self, timeout: float) -> signal.Signals | None:
        """The next that came, in their order; None after `timeout` seconds, or for a stranger."""
        readable, _, _ = select.select([self._noted], [], [], max(0.0, timeout))
        number = self._noted.recv(1) if readable else b""
        return next((each for each in self._signums if number == bytes([each])), None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._previous)
        self._noted.close()
        self._notes.close()


def _noted(_signum: int, _frame: FrameType | None) -> None:
    """Without a handler of Python's own the wakeup would not be written."""
