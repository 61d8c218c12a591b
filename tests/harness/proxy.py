"""A proxy on the loopback interface that can do to a connection what a bad network does.

One thread owns all sockets and carries out what a test asks for before the call returns. So
"nothing passed after hold()" is a fact and not a race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest

from processor.embedded import PostgresServer, RedisServer
from processor.embedded.server import HOST
from tests.harness.connection import BOTH, Address, Direction, Ending, Swallow
from tests.harness.relay import Relay


def any_answer(_tail: bytes) -> bool:
    return True


def ready_for_query(tail: bytes) -> bool:
    """Whether PostgreSQL has finished a string: its reply ends with ReadyForQuery and a status."""
    return tail[-6:-1] == b"Z\0\0\0\5"


class Proxy(Relay):
    """Forwards to `target`: (host, port) or the path of a unix socket.

    `round_trips` counts the client's bursts; a burst is all that the client sends until it receives
    a reply. Set a latency to count exactly: a server can reply to the head of a long request while
    its tail is still being sent.
    """

    def __init__(
        self,
        target: Address,
        *,
        listen: Path | None = None,
        answered: Callable[[bytes], bool] = any_answer,
        server: RedisServer | PostgresServer | None = None,
    ) -> None:
        super().__init__(target, listen, answered)
        self.server = server

    # Addresses for clients.

    @property
    def address(self) -> Address:
        return str(self.listen) if self.listen else (HOST, self.port)

    @property
    def url(self) -> str:
        """The Redis URL through the proxy."""
        assert isinstance(self.server, RedisServer)
        if self.listen:
            return f"unix://{self.listen}?db=0"
        return self.server.url.replace(f"{HOST}:{self.server.port}", f"{HOST}:{self.port}")

    def dsn_of(self, database: str = "postgres") -> str:
        """The DSN of a database through the proxy."""
        assert isinstance(self.server, PostgresServer)
        return self.server.dsn_of(database, port=self.port)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    # What can be done to the network.

    def latency(self, round_trip: float) -> None:
        """Add seconds to each round trip, half in each direction; the throughput stays."""
        self._do(lambda: setattr(self, "_round_trip", round_trip))

    def hold(self, direction: Direction | Literal["both"] = "both") -> None:
        """Be a black hole: connections stay open, new ones are accepted, nothing passes."""
        self._do(lambda: self._held.update(BOTH if direction == "both" else [direction]))

    def release(self) -> None:
        """End `hold`; the bytes that were held pass now."""

        def act() -> None:
            self._held.clear()
            for connection in self._connections:
                connection.held = False

        self._do(act)

    def cut(self) -> None:
        """Close all connections (FIN)."""
        self._do(lambda: self._end_all("cut"))

    def reset(self) -> None:
        """Reset all connections (RST) on both sides."""
        self._do(lambda: self._end_all("reset"))

    def cut_after(self, count: int, direction: Direction = "down", ending: Ending = "cut") -> None:
        """Let `count` more bytes pass, then end the connection that sent the last of them."""
        self._do(lambda: setattr(self, "_budget", (direction, count, ending)))

    def refuse(self) -> None:
        """Refuse new connections; open ones stay open."""
        self._do(self._deaf)

    def accept(self) -> None:
        """End `refuse`, on the same port."""
        self._do(self._listen)

    def off(self) -> None:
        """Behave as if the server's host lost power: reset all connections, refuse new ones."""
        self.refuse()
        self.reset()

    def on(self) -> None:
        self.release()
        self.accept()

    def swallow(
        self, marker: bytes, ending: Ending = "cut", *, skip: int = 0, executed: bool = True
    ) -> Swallow:
        """Lose the reply to the next request with `marker`, then end its connection as `ending`.

        The server receives the request and has replied when the connection ends; with
        `executed=False` it never receives the request. `skip`: number of such requests to let pass.
        """
        order = Swallow(marker, ending, skip, executed)
        self._do(lambda: self._swallows.append(order))
        return order

    def clear(self) -> None:
        """Forget all orders; open connections stay open."""

        def act() -> None:
            self._round_trip, self._budget = 0.0, None
            self._swallows.clear()

        self._do(act)
        self.on()


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """`proxy_to(target)`: a RedisServer, PostgresServer or address; closed with the test."""
    with ExitStack() as stack:

        def make(target: RedisServer | PostgresServer | Address, **options: Any) -> Proxy:
            if isinstance(target, RedisServer | PostgresServer):
                options["server"], target = target, (HOST, target.port)
            if isinstance(options.get("server"), PostgresServer):
                options.setdefault("answered", ready_for_query)
            proxy = Proxy(target, **options)
            stack.callback(proxy.close)
            return proxy

        yield make
