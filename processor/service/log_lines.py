"""What a service writes to its log: one event a line, as text or JSON, and never a secret.

Installed by `service` alone; inside somebody else's application the log is theirs. A log that
blocks or fails must not hold up the drain thread, so a line that cannot be written at once is
dropped and counted, and the next line that can be says how many.
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

# A pipe that is reported writable takes PIPE_BUF bytes, 4096, without blocking: a line of a message
# and a failure of these lengths is shorter, even if JSON escapes every character of it.
_MESSAGE, _FAILURE = 1500, 400
_PATIENCE_MS = 20
# What moves the cursor, ends a line, or turns the direction of writing can forge a line.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(r"(?i)(\w+://[^:@/\s]*:)[^@\s]+@|((?:password|passwd|secret|token)\s*[=:]\s*)"
                     r"""(?:'[^']*'|"[^"]*"|[^\s&,;)]+)""")

ExcInfo = (tuple[type[BaseException], BaseException, TracebackType | None]
           | tuple[None, None, None])


def reopen(path: str | os.PathLike[str]) -> None:
    """Let standard output and error go to a file that may have been rotated away meanwhile."""
    file = open_file(path)
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
    finally:
        os.close(file)


def open_file(path: str | os.PathLike[str]) -> int:
    """A log file to append to; no symbolic link is followed. Raises ConfigError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        raise ConfigError(f"log {os.fspath(path)}: {error.strerror}", hint="give another --log-file"
                          ) from None


def keep_streams() -> None:
    """See that 0, 1 and 2 are open: a connection that got one of their numbers would be written
    to by whoever prints."""
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def install(settings: Log) -> None:
    """Let all that this process logs go to standard error as `settings` say."""
    handler = Lines(2)
    handler.setFormatter(Json() if settings.format == "json" else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(True)
    # What it would print to standard error when logging fails could block there as well.
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
            # Whatever went wrong, also in the arguments of a message, is the log's trouble alone.
            self._dropped += 1

    def _write(self, line: bytes) -> None:
        if self._dropped and self._writable():
            lost, self._dropped = self._dropped, 0
            os.write(self._file, f"({lost} lines could not be written)\n".encode())
        if self._writable():
            os.write(self._file, line)
        else:
            self._dropped += 1

    def _writable(self) -> bool:
        patience = 0 if self._dropped else _PATIENCE_MS
        return any(events & select.POLLOUT for _, events in self._poll.poll(patience))


class Text(logging.Formatter):
    """Time, level and message on one line; a failure's place behind it."""

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
