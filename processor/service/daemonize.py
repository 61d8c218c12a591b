"""Starts a classic daemon and reports to the terminal whether it works.

The process that calls `daemon` waits on a pipe until the daemon reports that it works, or why not.
A forked child detaches (python-daemon), takes the pidfile and does the work. The work must open its
own connections and threads, since detaching closes every open file and ends all threads.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import time
from collections.abc import Callable
from typing import NoReturn

from daemon import DaemonContext  # type: ignore[import-untyped]

from processor import errors
from processor.errors import ProcessorError
from processor.service.pidfile import Pidfile

Work = Callable[[Callable[[], None]], int]


def daemon(work: Work, pidfile: Pidfile, log: int, patience: float) -> int:
    """Run `work(ready)` in a daemon whose output goes to the open file `log`; return its pid.

    Returns once the work has called `ready`. Raises the ProcessorError that the work raised, or one
    of its own if the work ended or did not call `ready` within `patience` seconds.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _become(work, pidfile, log, writing)
    os.close(writing)
    try:
        os.waitpid(child, 0)
        return _receive(reading, patience)
    finally:
        os.close(reading)


def _become(work: Work, pidfile: Pidfile, log: int, writing: int) -> NoReturn:
    code, answer = 1, _Answer(writing)
    try:
        output = io.FileIO(log, "a")
        # All options are given: the defaults would guess whether to detach, discard all output and
        # create files that every user can write.
        with DaemonContext(
            detach_process=True, working_directory="/", umask=0o077, signal_map={},
            stdin=None, stdout=output, stderr=output, files_preserve=[writing], pidfile=pidfile,
        ):  # fmt: skip
            output.close()  # standard output and error are its duplicates now
            code = work(lambda: answer.give(f"ready:{os.getpid()}"))
            answer.give(f"ProcessorError:the daemon exited with code {code} while it started")
    except BaseException as error:
        ours = isinstance(error, ProcessorError)
        kind = type(error).__name__ if ours else ProcessorError.__name__
        answer.give(f"{kind}:{error if ours else type(error).__name__}")
        logging.getLogger("processor.service").critical("the daemon failed", exc_info=True)
    finally:
        os._exit(code)


class _Answer:
    """Sends the first report to the process that waits, if it still does, and drops all others."""

    def __init__(self, writing: int) -> None:
        self._writing = writing

    def give(self, report: str) -> None:
        writing, self._writing = self._writing, -1
        if writing >= 0:
            with contextlib.suppress(OSError):
                os.write(writing, report.encode())
            os.close(writing)


def _receive(reading: int, patience: float) -> int:
    """The pid in the report of the daemon; raises the error in it."""
    end = time.monotonic() + patience
    if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        raise ProcessorError(f"the daemon did not report within {patience:g} s",
                             hint="check its log")
    kind, _, text = os.read(reading, 65536).decode().partition(":")
    if kind == "ready":
        return int(text)
    raise getattr(errors, kind, ProcessorError)(text or "the daemon was killed while it started")
