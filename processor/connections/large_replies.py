"""Replies of Redis that are too large for memory: noticed while they arrive, and read cut short.

Whoever may XADD can write an entry of hundreds of megabytes. hiredis collects a whole text before
it hands it out, and needs several times its size. `CountingReader` stops at a limit; `read_cut`
then reads the same reply from the socket, where the length of a text comes before its bytes (P12).
"""

from __future__ import annotations

import socket
from typing import Any

from processor.errors import RedisRefused, RedisUnavailable

#: So many bytes are kept of a text that exceeds the limit.
_HEAD = 64 * 1024
#: Texts up to this size are always kept, so that the ids of entries are.
_SMALL = 1024
_CHUNK = 1 << 20
_MOST_NESTED = 8


class ReplyTooLarge(RedisUnavailable):
    """A reply exceeded the limit, and its connection was closed."""


class Cut(bytes):
    """The first bytes of a text that had `length` bytes."""

    length: int

    @classmethod
    def of(cls, head: bytes, length: int) -> Cut:
        """Return the head of a text that has `length` bytes."""
        made = cls(head)
        made.length = length
        return made


class CountingReader:
    """A reader of hiredis that raises ReplyTooLarge at a limit."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.gets, self.has_data = reader.gets, reader.has_data
        self.left: int | None = None

    def feed(self, buffer: Any, offset: int = 0, length: int = -1) -> None:
        if self.left is not None:
            self.left -= length
            if self.left < 0:
                raise ReplyTooLarge("a reply of Redis is too large")
        self._reader.feed(buffer, offset, length)


def read_cut(sock: socket.socket, count: int, limit: int) -> list[Any]:
    """Read replies from a socket, keeping about `limit` bytes of each.

    A text above the limit is a `Cut` with its first bytes; what follows when the limit is used up
    is an empty `Cut`. Raises RedisUnavailable and OSError.
    """
    # Nothing follows the replies, so that the buffer of the file takes nothing else.
    with sock.makefile("rb", buffering=_HEAD) as file:
        return [_Replies(file, limit).read() for _ in range(count)]


class _Replies:
    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit, self._kept = file, limit, 0

    def read(self, depth: int = 0) -> Any:
        line = self._file.readline(_HEAD)
        kind, rest = line[:1], line[1:-2]
        if not line.endswith(b"\r\n") or depth > _MOST_NESTED:
            raise RedisUnavailable("Redis closed the connection within a reply")
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [self.read(depth + 1) for _ in range(count)]
        if kind == b"$":
            return self._text(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"-":
            code, _, text = rest.decode(errors="replace").partition(" ")
            # Only ERR quotes arguments.
            shown = "" if code == "ERR" else text[:160]
            return RedisRefused(code, f"Redis refused: {code} {shown}".strip())
        return rest

    def _text(self, length: int) -> bytes | None:
        if length < 0:
            return None
        if length <= _SMALL or self._kept + length <= self._limit:
            self._kept += length
            found = self._take(length)
        else:
            head = self._take(min(length, _HEAD) if length > self._limit else 0)
            self._skip(length - len(head))
            found = Cut.of(head, length)
        self._take(2)
        return found

    def _take(self, length: int) -> bytes:
        found: bytes = self._file.read(length)
        if len(found) < length:
            raise RedisUnavailable("Redis closed the connection within a reply")
        return found

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self._take(min(length, _CHUNK)))

