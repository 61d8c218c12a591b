"""The log of a service: one event a line, as text or JSON, and never a secret.

Only `foreground` installs it; inside another application, that application owns the log. A log that
blocks or fails must not delay the drain thread, so a line that cannot be written at once is
dropped; the number of dropped lines is written before the next line that succeeds.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import select
from types import TracebackType

from processor.config import addresses
from processor.config.settings import Log
from processor.errors import ConfigError, ProcessorError
from processor.telemetry import faults

# A pipe that is reported writable accepts PIPE_BUF bytes, 4096, without blocking. A line with a
# message and a failure of these lengths is shorter, even if JSON escapes every character.
_MESSAGE, _FAILURE = 1500, 400
_PATIENCE_MS = 20
# Characters that move the cursor, end a line or change the writing direction can forge a line.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(r"(?i)(\w+://[^:@/\s]*:)[^@\s]+@|((?:password|passwd|secret|token)\s*[=:]\s*)"
                     r"""(?:'[^']*'|"[^"]*"|[^\s&,;)]+)""")

ExcInfo = (tuple[type[BaseException], BaseException, TracebackType | None]
           | tuple[None, None, None])


def reopen(path: str | os.PathLike[str]) -> None:
    """Send standard output and error to the file at `path`, which may have been rotated."""
    file = open_file(path)
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
    finally:
        os.close(file)


def open_file(path: str | os.PathLike[str]) -> int:
    """Open a log file for appending, following no symbolic link. Raises ConfigError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        raise ConfigError(f"log {os.fspath(path)}: {error.strerror}", hint="give another --log-file"
                          ) from None


def keep_streams() -> None:
    """Open 0, 1 and 2 if they are closed: a connection that got one of these numbers would receive
    everything that the process prints."""
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one


def install(settings: Log) -> None:
    """Send everything that this process logs to standard error, as `settings` specify."""
    handler = Lines(2)
    handler.setFormatter(Json() if settings.format == "json" else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(True)
    # With raiseExceptions, a failure of logging is printed to standard error, which could block.
    logging.raiseExceptions = False


class Lines(logging.Handler):
    """Writes whole lines to a file descriptor that may be a stalled pipe, or closed."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLOUT)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record).encode() + b"\n")
        except Exception:
            # A failure of the log, or wrong arguments of a message, must not reach the caller.
            self._dropped += 1

    def _write(self, line: bytes) -> None:
        if self._dropped and self._writable():
            dropped, self._dropped = self._dropped, 0
            os.write(self._file, f"({dropped} lines could not be written)\n".encode())
        if self._writable():
            os.write(self._file, line)
        else:
            self._dropped += 1

    def _writable(self) -> bool:
        patience = 0 if self._dropped else _PATIENCE_MS
        return any(events & select.POLLOUT for _, events in self._poll.poll(patience))


class Text(logging.Formatter):
    """Time, level and message on one line, then the exception, if any."""

    def format(self, record: logging.LogRecord) -> str:
        failure = f" [{_failure(record.exc_info)}]" if record.exc_info else ""
        return f"{_at(record)} {record.levelname} {_message(record)}{failure}"


class Json(logging.Formatter):
    """One object a line, with the same content."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": _message(record),
        }
        if record.exc_info:
            line["failure"] = _failure(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _at(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    return _clean(record.getMessage(), _MESSAGE)


def _failure(exc_info: ExcInfo) -> str:
    """The class of an exception and where it was raised. Its text may hold values (rule 19);
    only errors of processor hold none, so only these are quoted."""
    error = exc_info[1]
    if error is None:
        return ""
    text = str(error) if isinstance(error, ProcessorError) else ""
    return _clean(faults.described(error, text), _FAILURE)


def _clean(text: str, limit: int) -> str:
    """The text on one line, without passwords, in at most `limit` bytes."""
    text = _SECRET.sub(_masked, text)
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return text.encode("utf-8", "backslashreplace")[:limit].decode("utf-8", "ignore")


def _masked(found: re.Match[str]) -> str:
    return f"{found[1]}{addresses.MASK}@" if found[1] else f"{found[2]}{addresses.MASK}"
