"""Connections to Redis that the threads of a process share.

A connection lies idle between two uses, and meanwhile Redis (its `timeout`), a firewall or a
restart may close it. So the pool gives out none that is known to be closed, and a question that may
be repeated is asked once more on a new connection if an idle one turns out to be dead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from processor.connections.redis_client import RedisConnection
from processor.errors import RedisUnavailable

T = TypeVar("T")


class RedisPool:
    """Connections that the threads of a process share; one thread uses each at a time."""

    _MAX_IDLE = 32

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._idle: deque[RedisConnection] = deque()

    def take(self) -> RedisConnection:
        """Return a connection for the caller alone, who must return it with `give`."""
        try:
            while (connection := self._idle.pop()).ended:
                connection.close()
            return connection
        except IndexError:
            return RedisConnection(self._url, self._timeout)

    def give(self, connection: RedisConnection) -> None:
        """Put a connection back into the pool."""
        if connection.alive and len(self._idle) < self._MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def ask(self, question: Callable[[RedisConnection], T]) -> T:
        """Return what `question` returns for a connection. It may be asked twice.

        The second time is on a new connection, if an idle one failed. After a time-out there is no
        second time: the deadline of a call is that of the whole.
        """
        connection = self.take()
        idle = connection.alive
        try:
            return question(connection)
        except RedisUnavailable as error:
            # What ended this connection has most likely ended all idle ones.
            self.close()
            if not idle or error.timed_out:
                raise
        finally:
            self.give(connection)
        connection = RedisConnection(self._url, self._timeout)
        try:
            return question(connection)
        finally:
            self.give(connection)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def drop(self) -> None:
        """Drop the idle connections without closing them, in a forked child."""
        while self._idle:
            self._idle.pop().drop()
