"""Ctrl-C while the command line loads modules: the end, at once and without a word.

A KeyboardInterrupt there would come out of whatever is being imported, as a traceback through other
people's modules, or be lost in a callback of the import system. Nothing that would have to be
finished is at work yet.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


class InterruptGuard:
    """`with Loading(): import ...`; it changes nothing where SIGINT is ignored or another's."""

    _quiet = False

    def __enter__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, _leave)
                self._quiet = True
            except ValueError:
                pass  # Not the main thread, which alone is interrupted.

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)
