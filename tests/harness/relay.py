"""The thread of the proxy: owns all sockets, and moves bytes between them as a test orders.

`proxy` has the methods that a test calls.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from processor.embedded.server import HOST, free_port
from tests.harness.connection import Address, Connection, Direction, Ending, Swallow

CHUNK = 65_536
# Without a latency a slow reader must slow the sender down, as it would without the proxy.
QUEUE = 1 << 20
QUEUE_DELAYED = 1 << 26
# A reply can come in pieces; it is complete when no piece has followed for this many seconds.
QUIET = 0.02


class Relay:
    """Forwards to `target`: (host, port) or the path of a unix socket."""

    def __init__(
        self, target: Address, listen: Path | None, answered: Callable[[bytes], bool]
    ) -> None:
        self.target, self.listen = target, listen
        self.port = 0
        self.round_trips = self.accepted = self.bytes_up = self.bytes_down = 0
        self._answered = answered
        self._round_trip = 0.0
        self._held: set[Direction] = set()
        self._budget: tuple[Direction, int, Ending] | None = None
        self._swallows: list[Swallow] = []
        self._connections: list[Connection] = []
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._tried_at = 0.0
        self._closing = False
        self._error: BaseException | None = None
        self._listen()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._closing = True
            with contextlib.suppress(OSError):  # The thread may be ending already.
                self._wake.send(b"x")
            self._thread.join(10)
            assert not self._thread.is_alive(), "the proxy's thread hangs"
        self._wake.close()
        if self._error is not None:
            raise self._error

    # The thread.

    def _do(self, act: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        done: Future[None] = Future()
        self._commands.append((act, done))
        self._wake.send(b"x")
        done.result(10)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except BaseException as error:
            self._error = error
        finally:
            self._end_all("reset")
            self._deaf()
            self._selector.close()
            self._waker.close()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._until_next()):
            if key.fileobj is self._waker:
                self._waker.recv(CHUNK)
            elif key.fileobj is self._listener:
                self._accept()
            elif events & selectors.EVENT_READ:
                self._read(*key.data, key.fileobj)
        while self._commands:
            act, done = self._commands.popleft()
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)
        self._tried_at = time.monotonic()
        for connection in list(self._connections):
            self._move(connection, self._tried_at)

    def _until_next(self) -> float | None:
        dues = [c.quiet_at for c in self._connections]
        for c in self._connections:
            dues += [w.queue[0][0] for d, w in c.ways.items() if w.queue and not self._holds(c, d)]
        # Bytes that were due at the last attempt wait for their sink, which the selector watches.
        later = [due for due in dues if self._tried_at < due < float("inf")]
        return max(0.0, min(later) - time.monotonic()) if later else None

    def _holds(self, connection: Connection, direction: Direction) -> bool:
        return connection.held or direction in self._held

    def _read(self, connection: Connection, direction: Direction, _socket: object) -> None:
        way = connection.ways[direction]
        if connection not in self._connections or way.ended or self._holds(connection, direction):
            return
        try:
            data = way.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, "reset")
            return
        if not data:
            way.ended = True
        elif direction == "up":
            data = self._request(connection, data)
        else:
            data = self._answer(connection, data)
        data = self._spend(connection, direction, data)
        if data or way.ended:
            way.put(time.monotonic() + self._round_trip / 2, data)

    def _request(self, connection: Connection, data: bytes) -> bytes:
        self.bytes_up += len(data)
        if connection.answered:
            self.round_trips += 1
            connection.answered = False
        window = connection.recent + data
        longest = max((len(order.marker) for order in self._swallows), default=1)
        for order in self._swallows:
            # A marker that lay whole in the last chunk was counted then.
            if order.matches(window[max(0, len(connection.recent) - len(order.marker) + 1) :]):
                self._swallows.remove(order)
                connection.swallow = order
                break
        connection.recent = window[-max(longest, 256) :]
        order_now = connection.swallow
        if order_now is not None and not order_now.executed:
            connection.quiet_at = time.monotonic()
            return b""
        return data

    def _answer(self, connection: Connection, data: bytes) -> bytes:
        order = connection.swallow
        if order is None:
            return data
        order.tail = (order.tail + data)[-64:]
        done = self._answered(order.tail)
        connection.quiet_at = time.monotonic() + QUIET if done else float("inf")
        return b""

    def _spend(self, connection: Connection, direction: Direction, data: bytes) -> bytes:
        if self._budget is None or self._budget[0] != direction or not data:
            return data
        _, left, ending = self._budget
        self._budget = (direction, left - len(data), ending)
        if left <= len(data):
            self._budget, connection.ending = None, ending
        return data[:left]

    def _move(self, connection: Connection, now: float) -> None:
        """Deliver what is due, end the connection if ordered, and set what to watch next."""
        try:
            for direction, way in connection.ways.items():
                if not self._holds(connection, direction):
                    self._count(connection, direction, way.deliver(now))
        except OSError:
            self._end(connection, "reset")
            return
        ways = connection.ways.values()
        if (order := connection.swallow) and connection.quiet_at <= now:
            connection.swallow, connection.quiet_at = None, float("inf")
            self._end(connection, order.ending)
            order.happened.set()
        elif connection.ending and not any(way.queue for way in ways):
            ending, connection.ending = connection.ending, None
            self._end(connection, ending)
        elif all(way.done for way in ways):
            self._end(connection, "cut")
        if connection in self._connections:
            self._watch(connection, now)

    def _count(self, connection: Connection, direction: Direction, sent: int) -> None:
        if direction == "down" and sent:
            self.bytes_down += sent
            connection.answered = True

    def _watch(self, connection: Connection, now: float) -> None:
        wanted = {connection.client: 0, connection.server: 0}
        limit = QUEUE_DELAYED if self._round_trip else QUEUE
        for direction, way in connection.ways.items():
            if self._holds(connection, direction):
                continue
            if not way.ended and not connection.ending and way.size < limit:
                wanted[way.source] |= selectors.EVENT_READ
            if way.queue and way.queue[0][0] <= now:
                wanted[way.sink] |= selectors.EVENT_WRITE
        data: dict[socket.socket, Direction] = {connection.client: "up", connection.server: "down"}
        for each, events in wanted.items():
            self._set_events(each, events, (connection, data[each]))

    def _set_events(self, each: socket.socket, events: int, data: Any) -> None:
        # Unregister when nothing is wanted: the selector always reports a hang-up, endlessly.
        key = self._selector.get_map().get(each)
        if key and not events:
            self._selector.unregister(each)
        elif key and key.events != events:
            self._selector.modify(each, events, data)
        elif not key and events:
            self._selector.register(each, events, data)

    # Sockets.

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX if self.listen else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bind(listener)
        listener.listen(128)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def _bind(self, listener: socket.socket) -> None:
        if self.listen:
            self.listen.unlink(missing_ok=True)
            listener.bind(str(self.listen))
        elif self.port:
            listener.bind((HOST, self.port))
        else:
            while not self.port:
                with contextlib.suppress(OSError):
                    listener.bind((HOST, port := free_port()))
                    self.port = port

    def _deaf(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        if self.listen:
            self.listen.unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
        for each in (client, server):
            each.setblocking(False)
            if each.family == socket.AF_INET:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server)
        self._connections.append(connection)
        self.accepted += 1
        if server.connect_ex(self.target) not in (0, errno.EINPROGRESS):
            self._end(connection, "reset")

    def _end_all(self, ending: Ending) -> None:
        for connection in list(self._connections):
            self._end(connection, ending)

    def _end(self, connection: Connection, ending: Ending) -> None:
        if ending == "hold":
            connection.held = True
            return
        self._connections.remove(connection)
        for each in (connection.client, connection.server):
            self._set_events(each, 0, None)
            if ending == "reset" and each.family == socket.AF_INET:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
