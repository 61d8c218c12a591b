"""A minimal transaction pooler: each transaction runs in another server session.

It speaks just enough of PostgreSQL's protocol for a client to take it for a server.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from processor.embedded import PostgresServer
from processor.embedded.server import HOST

_NO_ENCRYPTION = (80877103, 80877104)
_STRANGE_PID = 4_000_000


class Wire:
    """Messages of the protocol over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def startup(self) -> bytes:
        """Return the client's first message unchanged."""
        while True:
            head = self._file.read(4)
            body = self._file.read(struct.unpack("!i", head)[0] - 4)
            if struct.unpack("!i", body[:4])[0] not in _NO_ENCRYPTION:
                return head + body
            self.sock.sendall(b"N")

    def message(self) -> tuple[bytes, bytes]:
        """Return type and body of the next message; both are empty at the end."""
        kind = self._file.read(1)
        if not kind:
            return b"", b""
        return kind, self._file.read(struct.unpack("!i", self._file.read(4))[0] - 4)

    def send(self, kind: bytes, body: bytes) -> None:
        self.sock.sendall(kind + struct.pack("!i", len(body) + 4) + body)


class Pooler:
    """Listens for one server. `true_pid`: clients receive the backend pid of the first session."""

    def __init__(self, server: PostgresServer, *, true_pid: bool, size: int = 2) -> None:
        self.server, self._true_pid, self._size = server, true_pid, size
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._wires: list[Wire] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def dsn_of(self, database: str) -> str:
        return self.server.dsn_of(database, port=self.port)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for wire in self._wires:
            wire.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(
                    target=self._serve, args=(self._wire(self._listener.accept()[0]),), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _wire(self, sock: socket.socket) -> Wire:
        self._wires.append(Wire(sock))
        return self._wires[-1]

    def _serve(self, client: Wire) -> None:
        with contextlib.suppress(OSError, struct.error):
            startup = client.startup()
            sessions = [self._session(startup) for _ in range(self._size)]
            for kind, body in sessions[0][1]:
                if kind == b"K" and not self._true_pid:
                    body = struct.pack("!ii", _STRANGE_PID, 1)
                client.send(kind, body)
            self._relay(client, [wire for wire, _ in sessions])

    def _session(self, startup: bytes) -> tuple[Wire, list[tuple[bytes, bytes]]]:
        wire = self._wire(socket.create_connection((HOST, self.server.port)))
        wire.sock.sendall(startup)
        said = [wire.message()]
        while said[-1][0] not in (b"Z", b""):
            said.append(wire.message())
        return wire, said

    def _relay(self, client: Wire, sessions: list[Wire]) -> None:
        turn, idle = 0, True
        while (request := client.message())[0] not in (b"X", b""):
            session = sessions[turn % len(sessions)]
            session.send(*request)
            kind = b""
            while kind != b"Z":
                kind, body = session.message()
                client.send(kind, body)
                idle = body == b"I"
            turn += idle


@pytest.fixture
def pooler_to() -> Iterator[Callable[..., Pooler]]:
    """`pooler_to(server, true_pid=..., size=...)`; closed at the end of the test."""
    with ExitStack() as stack:

        def make(server: PostgresServer, *, true_pid: bool, size: int = 2) -> Pooler:
            pooler = Pooler(server, true_pid=true_pid, size=size)
            stack.callback(pooler.close)
            return pooler

        yield make
