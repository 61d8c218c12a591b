"""A proxied connection: bytes that were read and not yet delivered, and orders to lose a reply.

`relay` moves the bytes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import Literal

Address = tuple[str, int] | str
Direction = Literal["up", "down"]  # up: towards the server
Ending = Literal["cut", "reset", "hold"]
BOTH: tuple[Direction, ...] = ("up", "down")


class Swallow:
    """An order to lose the reply to one request. `happened` is set when it is lost."""

    def __init__(self, marker: bytes, ending: Ending, skip: int, executed: bool) -> None:
        self.marker, self.ending, self.skip, self.executed = marker, ending, skip, executed
        self.happened = threading.Event()
        self.tail = b""

    def wait(self, timeout: float = 10.0) -> None:
        assert self.happened.wait(timeout), f"no reply to {self.marker!r} was lost"

    def matches(self, window: bytes) -> bool:
        """Whether this is the request whose reply to lose; counts down those to skip."""
        found = window.count(self.marker)
        self.skip -= found
        return found > 0 and self.skip < 0


class Way:
    """One direction of a connection: bytes read from `source` wait here for `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = self.done = False

    def put(self, due: float, data: bytes) -> None:
        self.queue.append((due, data))
        self.size += len(data)

    def deliver(self, now: float) -> int:
        """Send what is due; return the number of bytes sent."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while self.queue and self.queue[0][0] <= now:
                due, data = self.queue[0]
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    self.done = True
                count = self.sink.send(data) if data else 0
                self.queue.popleft()
                self.size -= count
                sent += count
                if count < len(data):
                    self.queue.appendleft((due, data[count:]))
        return sent


class Connection:
    """A client's connection and the connection to the server that serves it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.ways: dict[Direction, Way] = {"up": Way(client, server), "down": Way(server, client)}
        self.held = False
        self.answered = True
        self.recent = b""
        self.swallow: Swallow | None = None
        self.quiet_at = float("inf")
        self.ending: Ending | None = None
