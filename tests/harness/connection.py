"""A proxied connection: what was read and not yet delivered, and the order to lose an answer.

Hands both to `relay`, which moves the bytes.
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
    """An order to lose the answer to one request. `happened` is set when it is lost."""

    def __init__(self, marker: bytes, ending: Ending, skip: int, executed: bool) -> None:
        self.marker, self.ending, self.skip, self.executed = marker, ending, skip, executed
        self.happened = threading.Event()
        self.tail = b""

    def wait(self, timeout: float = 10.0) -> None:
        assert self.happened.wait(timeout), f"no answer to {self.marker!r} was swallowed"

    def matches(self, window: bytes) -> bool:
        """Whether this request is the one, those to skip being counted down."""
        found = window.count(self.marker)
        self.skip -= found
        return found > 0 and self.skip < 0


class Way:
    """One direction of a connection: what was read from `source` waits here for `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.queue: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = self.done = False

    def put(self, due: float, data: bytes) -> None:
        self.queue.append((due, data))
        self.size += len(data)

    def deliver(self, now: float) -> int:
        """Send what is due; the number of bytes that went out."""
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
    """A client's connection and the one made for it to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.ways: dict[Direction, Way] = {"up": Way(client, server), "down": Way(server, client)}
        self.held = False
        self.answered = True
        self.recent = b""
        self.swallow: Swallow | None = None
        self.quiet_at = float("inf")
        self.ending: Ending | None = None
