"""Connections to Redis with a deadline on every call and no retries of their own.

One call is one write, and as many replies as commands. Commands are pipelined, not wrapped in
MULTI, so that a full Redis refuses only those that add (rule 20); the producer alone sends MULTI
itself, around what it adds (rule 81). redis-py's own retries are off: after a lost reply they would
add the same entry again (rule 11). Any doubt about the sequence of
replies closes the connection. The next connection has another `generation`, so that ids read on the
old one are no longer trusted (rule 9).
"""

from __future__ import annotations

import contextlib

# Connecting needs these two. They are imported here so that no thread imports them later: a fork
# during an import leaves the lock of that module held in the child indefinitely.
import email.parser  # noqa: F401
import encodings.idna  # noqa: F401
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.backoff import NoBackoff
from redis.connection import DefaultParser, parse_url
from redis.retry import Retry

from processor.connections import redis_errors
from processor.connections.fork_guard import resolving
from processor.connections.large_replies import CountingReader, ReplyTooLarge, read_cut
from processor.errors import ConfigError, RedisRefused, RedisUnavailable

log = logging.getLogger("processor.connections")

Command = Sequence[bytes | str | int | float]
Reply = Any

#: A reply with entries may have this size unless the connection has a limit of its own.
_REPLY_LIMIT = 64 * 1_048_576
#: After a reply was too large, the next ones are read carefully for so many seconds.
_CAREFUL = 10.0


#: A command, a tuple, as the bytes that are sent. redis-py's own packing takes five times as long.
pack = cast(Callable[[tuple[bytes | str | int | float, ...]], bytes], hiredis.pack_command)


def checked(replies: list[Reply]) -> list[Reply]:
    """Return the replies of `calls`. Raises the first RedisRefused among them."""
    for reply in replies:
        if isinstance(reply, RedisRefused):
            raise reply
    return replies


#: A deadline is kept to within so many seconds.
_GRAIN = 0.02


class _CountingParser(DefaultParser):  # type: ignore[misc, valid-type]
    """Parses replies as redis-py does, and stops at a limit."""

    def on_connect(self, connection: Any, **options: Any) -> None:
        super().on_connect(connection, **options)
        self._reader: Any = CountingReader(self._reader)

    def allow(self, size: int | None) -> None:
        """Allow the next reply at most so many bytes; None for any number."""
        if self._reader is not None:
            self._reader.left = size


class RedisConnection:
    """One connection, opened by the first call and reopened by the first call after a failure."""

    def __init__(self, url: str, timeout: float, reply_limit: int = _REPLY_LIMIT) -> None:
        self.reply_limit = reply_limit
        self._careful_until = float("-inf")
        self._kind, self._options = _options(url, timeout)
        self._address = _address(self._options)
        self._timeout = timeout
        self._connection: Any = None
        self._poll: Any = None
        self._has_answered = False
        self.generation = 0
        #: When the calls from now on must have ended (monotonic), however many they are; None: each
        #: call has the whole timeout.
        self.deadline: float | None = None
        #: Values that the user of the connection keeps until it closes.
        self.memory: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return self._connection is not None

    @property
    def ended(self) -> bool:
        """Whether the other side closed the connection, or wrote something nobody asked for.

        Asked before an idle connection is used again: what is sent on a closed connection may have
        been received or not, and nothing tells which.
        """
        if self._connection is None or self._poll is None:
            return False
        try:
            return bool(self._poll.poll(0))
        except OSError:
            return True

    def open(self) -> None:
        """Connect unless the connection is open. Raises RedisUnavailable."""
        self._open()

    def call(self, *command: bytes | str | int | float) -> Reply:
        """Return the reply to one command. Raises RedisRefused and RedisUnavailable."""
        reply = self.calls([command])[0]
        if isinstance(reply, RedisRefused):
            raise reply
        return reply

    @property
    def is_careful(self) -> bool:
        """Whether replies to `read` may contain `Cut` texts."""
        return time.monotonic() < self._careful_until

    def read(self, commands: Sequence[Command], *, block: float = 0.0) -> list[Reply]:
        """Do the same as `calls`, for commands that only read and whose replies contain entries.

        A reply above `reply_limit` is read again with a `Cut` in place of a text that is too large
        (P12). The first time this takes another connection.
        """
        if not self.is_careful:
            try:
                return self.calls(commands, block=block, limit=self.reply_limit)
            except ReplyTooLarge:
                log.warning("Redis at %s has an entry of more than %d bytes, or many large ones",
                            self._address, self.reply_limit)  # fmt: skip
        self._careful_until = time.monotonic() + _CAREFUL
        return self.calls(commands, block=block, cut=True)

    def calls(
        self, commands: Sequence[Command], *, block: float = 0.0,
        limit: int | None = None, cut: bool = False,
    ) -> list[Reply]:  # fmt: skip
        """Return the replies to several commands sent in one write; refusals are in the list.

        `block` is the time that the server itself may wait, in seconds, on top of the deadline. A
        reply above `limit` bytes raises ReplyTooLarge. See `read` about `cut`.
        Raises RedisUnavailable if any reply is missing; any of the commands may then have run.
        """
        packed = b"".join([pack(tuple(command)) for command in commands])
        return self.exchange(packed, len(commands), block=block, limit=limit, cut=cut)

    def exchange(
        self, packed: bytes, count: int, *, block: float = 0.0, limit: int | None = None,
        cut: bool = False,
    ) -> list[Reply]:  # fmt: skip
        """Do the same as `calls`, for `count` commands that are packed."""
        connection = self._open()
        try:
            shortened = self._shorten(connection)
            connection._sock.sendall(packed)
            if block:
                # Not as an argument of `read_response`, which the oldest redis-py does not have.
                connection._sock.settimeout(self._timeout + block)
            if cut:
                replies = read_cut(connection._sock, count, self.reply_limit)
            elif limit:
                replies = _limited_replies(connection, count, limit)
            else:
                replies = _replies(connection, count)
            if shortened or block:
                connection._sock.settimeout(self._timeout)
            self._has_answered = True
        except (redis.RedisError, OSError, ValueError, RedisUnavailable) as error:
            self.close()
            unavailable = redis_errors.unavailable(
                error, self._address, self._timeout + block, has_answered=self._has_answered
            )
            unavailable.sent = True
            raise unavailable from None
        except BaseException:
            # The next user of this connection would receive the replies to this call.
            self.close()
            raise
        if RedisRefused in map(type, replies) and _is_elsewhere(replies):
            # The host name may resolve to another server by now: the next call reconnects.
            self.close()
        return replies

    def _shorten(self, connection: Any) -> bool:
        """Whether the next call gets less than the whole timeout, because of the deadline."""
        if self.deadline is None:
            return False
        remaining = self._remaining()
        # To set it is a system call, which the first call of a submit can do without.
        if remaining > self._timeout - _GRAIN:
            return False
        connection._sock.settimeout(remaining)
        return True

    def _remaining(self) -> float:
        """The seconds until the deadline. Raises RedisUnavailable if it has passed."""
        assert self.deadline is not None
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise redis_errors.silent(self._address, self._timeout)
        return remaining

    def close(self) -> None:
        """Close the connection; the next call opens another. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, redis.RedisError):
                connection.disconnect()

    def abort(self) -> None:
        """Interrupt the call in progress; may be called from another thread."""
        connection = self._connection
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Drop the connection without closing it: after a fork it belongs to the parent (P6)."""
        _inherited.append(self._connection)
        self._connection = None

    def _open(self) -> Any:
        if self._connection is None:
            connection = self._kind(**self._options)
            if self.deadline is not None:
                connection.socket_timeout = self._remaining()
                connection.socket_connect_timeout = connection.socket_timeout
            # redis-py would send its own name and version: two more round trips, and refused with
            # NOPERM if the user has least privilege.
            connection.lib_name = connection.lib_version = connection.driver_info = None
            try:
                with resolving():
                    connection.connect()
            except (redis.RedisError, OSError) as error:
                raise redis_errors.unavailable(error, self._address, self._timeout) from None
            connection._sock.settimeout(self._timeout)
            self._connection = connection
            self._has_answered = False
            self._poll = _poll_of(connection._sock)
            self.generation += 1
            self.memory = {}
            log.debug("connected to Redis at %s", self._address)
        return self._connection


# Connections inherited by a fork. Collecting them would close the parent's sockets.
_inherited: list[Any] = []

#: A firewall that forgets connections without traffic does so after minutes; the default of the
#: system is to probe after two hours.
_KEEPALIVE = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
}

#: Errors of a server that is no longer, or not yet, the one to write to.
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"})


def _is_elsewhere(replies: list[Reply]) -> bool:
    return any(isinstance(r, RedisRefused) and r.code in _ELSEWHERE for r in replies)


def _replies(connection: Any, count: int) -> list[Reply]:
    """Read replies from the socket itself: redis-py needs a microsecond more for each."""
    sock, parser = connection._sock, connection._parser
    reader, buffer = parser._reader, parser._buffer
    replies = []
    for _ in range(count):
        reply = reader.gets()
        while reply is NOT_ENOUGH_DATA:
            length = sock.recv_into(buffer)
            if not length:
                raise redis.ConnectionError(redis_errors.CLOSED)
            reader.feed(buffer, 0, length)
            reply = reader.gets()
        replies.append(redis_errors.refusal(reply) if isinstance(reply, Exception) else reply)
    return replies


def _limited_replies(connection: Any, count: int, limit: int) -> list[Reply]:
    """Read replies of at most `limit` bytes each."""
    replies = []
    for _ in range(count):
        connection._parser.allow(limit)
        try:
            replies.append(connection.read_response())
        except (redis.exceptions.BusyLoadingError, redis.ResponseError) as error:
            replies.append(redis_errors.refusal(error))
    connection._parser.allow(None)
    return replies


def _poll_of(sock: Any) -> Any:
    """Return what asks whether there is something to receive; None without the system call."""
    if not hasattr(select, "poll"):  # Windows has none, and some green threads remove it.
        return None
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll


def _options(url: str, timeout: float) -> tuple[Any, dict[str, Any]]:
    try:
        options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        scheme = urlsplit(url).scheme or "none"
        raise ConfigError(
            f"redis.url: cannot be used (scheme {scheme}): {type(error).__name__}",
            hint="use redis://, rediss:// or unix://",
        ) from None
    kind = options.pop("connection_class", redis.Connection)
    options.update(
        # Replies are read as bytes and lists here, whatever the URL asks for.
        protocol=2,
        decode_responses=False,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        parser_class=_CountingParser,
        health_check_interval=0,
    )
    if kind is redis.UnixDomainSocketConnection:
        del options["socket_connect_timeout"]
    else:
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = _KEEPALIVE
    if kind is redis.SSLConnection and options.get("ssl_cert_reqs", "required") == "required":
        # Older releases of redis-py accept any certificate of a trusted authority.
        options.setdefault("ssl_check_hostname", True)
    return kind, options


def _address(options: dict[str, Any]) -> str:
    """Return the address of the server for messages: its socket, or host:port."""
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return str(options["path"]) if "path" in options else f"{host}:{port}"
