"""Becoming a daemon by the old rules, with an answer for the terminal that asked for it.

The process that calls `daemon` stays and listens on a pipe until the daemon works or says why it
does not; a copy of it detaches (python-daemon), takes the pidfile and does the work. Whatever needs
a connection or a thread is opened by the work, since detaching closes every open file and keeps no
thread.
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
    """Run `work(ready)` in a daemon whose output goes to the open file `log`; give its pid.

    Answers once the work has called `ready`. Raises what the work raised, if it is an error of
    processor, and ProcessorError where it ended or said nothing for `patience` seconds.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _become(work, pidfile, log, writing)
    os.close(writing)
    try:
        os.waitpid(child, 0)
        return _hear(reading, patience)
    finally:
        os.close(reading)


def _become(work: Work, pidfile: Pidfile, log: int, writing: int) -> NoReturn:
    code, answer = 1, _Answer(writing)
    try:
        output = io.FileIO(log, "a")
        # Each of these is given, since the defaults would guess whether to detach, lose all output
        # and make files that everybody may write.
        with DaemonContext(
            detach_process=True, working_directory="/", umask=0o077, signal_map={},
            stdin=None, stdout=output, stderr=output, files_preserve=[writing], pidfile=pidfile,
        ):  # fmt: skip
            output.close()  # it is standard output and error now
            code = work(lambda: answer.give(f"ready:{os.getpid()}"))
            answer.give(f"ProcessorError:it ended at once with exit code {code}")
    except BaseException as error:
        known = isinstance(error, ProcessorError)
        kind = type(error).__name__ if known else ProcessorError.__name__
        answer.give(f"{kind}:{error if known else type(error).__name__}")
        logging.getLogger("processor.service").critical("the daemon failed", exc_info=True)
    finally:
        os._exit(code)


class _Answer:
    """The first word that is given goes to the terminal, if that still listens; no other."""

    def __init__(self, writing: int) -> None:
        self._writing = writing

    def give(self, word: str) -> None:
        writing, self._writing = self._writing, -1
        if writing >= 0:
            with contextlib.suppress(OSError):
                os.write(writing, word.encode())
            os.close(writing)


def _hear(reading: int, patience: float) -> int:
    end = time.monotonic() + patience
    if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        raise ProcessorError(f"the daemon gave no sign within {patience:g} s", hint="see its log")
    kind, _, text = os.read(reading, 65536).decode().partition(":")
    if kind == "ready":
        return int(text)
    raise getattr(errors, kind, ProcessorError)(text or "the daemon was killed while it started")
