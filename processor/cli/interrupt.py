"""Exits silently on Ctrl-C while the command line imports modules.

A KeyboardInterrupt there would show a traceback through the module that is being imported, or be
lost in a callback of the import system. No work has begun yet that would have to be finished.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


class InterruptGuard:
    """`with InterruptGuard(): import ...`; does nothing if SIGINT is ignored or has a handler."""

    _quiet = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, _leave)
                self._quiet = True
            except ValueError:
                pass  # Only the main thread is interrupted, and this is another one.

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)
