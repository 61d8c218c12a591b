"""Connections to Redis with a deadline on every call and no retries of their own.

One call is one write and as many replies as commands: commands are sent side by side, never in
MULTI, so that a full Redis refuses only those that add (rule 20). redis-py's own retries are off: a
lost reply would make it add the same entry again (rule 11). Any doubt about the stream of replies
ends the connection, and its `generation` tells that ids read before are no longer to be trusted
(rule 9).
"""

from __future__ import annotations

import contextlib

# Connecting needs these two, and they are loaded here so that no thread loads them: a fork during
# an import leaves the lock of that module held in the child, for ever.
import email.parser  # noqa: F401
import encodings.idna  # noqa: F401
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from processor.connections.fork_guard import resolving
from processor.errors import ConfigError, RedisRefused, RedisUnavailable

_pack = cast(Callable[[tuple[Any, ...]], bytes], hiredis.pack_command)

Command = Sequence[bytes | str | int | float]
Reply = Any


def checked(replies: list[Reply]) -> list[Reply]:
    """Return the replies of `calls`. Raises the first RedisRefused among them."""
    for reply in replies:
        if isinstance(reply, RedisRefused):
            raise reply
    return replies


class RedisConnection:
    """One connection, opened at its first call and again after each failure."""

    def __init__(self, url: str, timeout: float) -> None:
        self._kind, self._options = _options(url, timeout)
        self._place = _place(self._options)
        self._timeout = timeout
        self._connection: Any = None
        self.generation = 0
        #: What its user remembers for as long as the connection lives.
        self.memory: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        """Whether the connection is open as far as is known."""
        return self._connection is not None

    def call(self, *command: bytes | str | int | float) -> Reply:
        """The reply to one command. Raises RedisRefused or RedisUnavailable."""
        reply = self.calls([command])[0]
        if isinstance(reply, RedisRefused):
            raise reply
        return reply

    def calls(self, commands: Sequence[Command], *, block: float = 0.0) -> list[Reply]:
        """The replies to several commands sent in one write; refusals stand in the list.

        `block` is how long the server itself may wait, in seconds, on top of the deadline. Raises
        RedisUnavailable if any reply is missing; then nothing is known of any of the commands.
        """
        connection = self._open()
        try:
            # Not redis-py's own packing, which takes five times as long for the same bytes.
            packed = b"".join(map(_pack, map(tuple, commands)))
            connection.send_packed_command([packed], check_health=False)
            if block:
                replies = [self._reply(connection, timeout=self._timeout + block) for _ in commands]
            else:
                replies = [self._reply(connection) for _ in commands]
        except (redis.RedisError, OSError, RedisUnavailable) as error:
            self.close()
            unavailable = _unavailable(error, self._place)
            unavailable.sent = True
            raise unavailable from None
        except BaseException:
            # A reply may still be on its way to whoever would use this connection next.
            self.close()
            raise
        if any(isinstance(r, RedisRefused) and r.code in _ELSEWHERE for r in replies):
            # A name may lead to another server by now: the next call asks anew.
            self.close()
        return replies

    @staticmethod
    def _reply(connection: Any, **options: float) -> Reply:
        try:
            return connection.read_response(**options)
        except redis.exceptions.BusyLoadingError as error:
            raise RedisUnavailable(f"Redis is loading its data: {_code(error)}") from None
        except redis.ResponseError as error:
            return RedisRefused(_code(error), _sentence(error))

    def close(self) -> None:
        """End the connection; the next call opens another. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, redis.RedisError):
                connection.disconnect()

    def abort(self) -> None:
        """Cut the call in progress; may be called from another thread."""
        connection = self._connection
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Forget the connection without closing it: after fork it is the parent's (P6)."""
        _inherited.append(self._connection)
        self._connection = None

    def _open(self) -> Any:
        if self._connection is None:
            connection = self._kind(**self._options)
            # redis-py would tell the server its own name: two more round trips, and NOPERM in the
            # log of a user with least privilege.
            connection.lib_name = connection.lib_version = connection.driver_info = None
            try:
                with resolving():
                    connection.connect()
            except (redis.RedisError, OSError) as error:
                raise _unavailable(error, self._place) from None
            self._connection = connection
            self.generation += 1
            self.memory = {}
        return self._connection


class RedisPool:
    """Connections shared by the producers of a process, each used by one thread at a time."""

    _MOST_IDLE = 32

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._idle: deque[RedisConnection] = deque()

    def take(self) -> RedisConnection:
        """A connection for the caller alone; `give` it back."""
        try:
            return self._idle.pop()
        except IndexError:
            return RedisConnection(self._url, self._timeout)

    def give(self, connection: RedisConnection) -> None:
        """Return a connection that was taken."""
        if connection.alive and len(self._idle) < self._MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        while self._idle:
            self._idle.pop().drop()


_inherited: list[Any] = []

_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"})


def _options(url: str, timeout: float) -> tuple[Any, dict[str, Any]]:
    try:
        options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        scheme = urlsplit(url).scheme or "none"
        raise ConfigError(
            f"redis.url: cannot be used (scheme {scheme}): {type(error).__name__}",
            hint="redis://, rediss:// or unix://",
        ) from None
    kind = options.pop("connection_class", redis.Connection)
    options.update(
        # Replies are read here as bytes and lists, whatever an address says.
        protocol=2,
        decode_responses=False,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    if kind is redis.UnixDomainSocketConnection:
        del options["socket_connect_timeout"]
    else:
        options["socket_keepalive"] = True
    if kind is redis.SSLConnection and options.get("ssl_cert_reqs", "required") == "required":
        # Older releases of redis-py take any certificate of a known authority.
        options.setdefault("ssl_check_hostname", True)
    return kind, options


def _code(error: Exception) -> str:
    words = str(error).split()
    first = words[0] if words else ""
    # redis-py strips the code of the replies that it has a class of its own for.
    return first if first.isupper() else _CODES.get(type(error).__name__, "ERR")


_CODES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ExecAbortError": "EXECABORT",
    "NoScriptError": "NOSCRIPT",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
}


def _sentence(error: Exception) -> str:
    # Error replies of Redis name commands, keys and modes; arguments are only quoted by ERR.
    code = _code(error)
    text = "" if code == "ERR" else str(error)[:160].removeprefix(code)
    return f"Redis refused: {code} {text.strip()}".strip()


def _place(options: dict[str, Any]) -> str:
    """How errors name the server: its socket, or host:port."""
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return str(options["path"]) if "path" in options else f"{host}:{port}"


def _unavailable(error: Exception, place: str) -> RedisUnavailable:
    if isinstance(error, RedisUnavailable):
        return error
    if isinstance(error, redis.exceptions.TimeoutError):
        return RedisUnavailable(f"Redis at {place} gives no answer within the deadline of the call")
    if isinstance(error, redis.exceptions.AuthenticationError):
        return RedisUnavailable("Redis refused the credentials", hint="check redis.url")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return RedisUnavailable("Redis is loading its data")
    if isinstance(error, redis.ResponseError):
        # To SELECT, most of all: the number of a database that is not there.
        return RedisUnavailable(f"Redis at {place} refused the connection", hint="check redis.url")
    return RedisUnavailable(f"Redis is away at {place}: {_trouble(error)}")


def _trouble(error: BaseException) -> str:
    """What the system said of a connection; the driver's own words may hold more."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__context__
    return type(error).__name__
