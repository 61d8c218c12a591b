"""A proxy on the loopback that can do to a connection what a bad network does.

One thread owns all its sockets; what a test asks for is done there, and has been done when the call
returns. So "nothing passed after hold()" is a fact and not a race.
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
    """PostgreSQL has done all of a string: its answer ends with ReadyForQuery and one letter."""
    return tail[-6:-1] == b"Z\0\0\0\5"


class Proxy(Relay):
    """Stands before `target`, (host, port) or the path of a unix socket.

    `round_trips` counts the client's bursts, a burst being all that it sends until it hears an
    answer. Set a latency to count exactly: a server can answer the head of a long request, and the
    client can hear it, while the tail is still being sent.
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
        """How many are open now."""
        return len(self._connections)

    # What can be done to the network.

    def latency(self, round_trip: float) -> None:
        """Add to each round trip (half a way), without limiting the throughput."""
        self._do(lambda: setattr(self, "_round_trip", round_trip))

    def hold(self, direction: Direction | Literal["both"] = "both") -> None:
        """A black hole: connections stay, new ones are accepted, nothing passes; see `release`."""
        self._do(lambda: self._held.update(BOTH if direction == "both" else [direction]))

    def release(self) -> None:
        """End `hold`; what was held passes now."""

        def act() -> None:
            self._held.clear()
            for connection in self._connections:
                connection.held = False

        self._do(act)

    def cut(self) -> None:
        """Close all connections (FIN)."""
        self._do(lambda: self._end_all("cut"))

    def reset(self) -> None:
        """Reset all connections (RST), towards both sides."""
        self._do(lambda: self._end_all("reset"))

    def cut_after(self, count: int, direction: Direction = "down", ending: Ending = "cut") -> None:
        """Let `count` more bytes pass, then end the connection that brought the last of them."""
        self._do(lambda: setattr(self, "_budget", (direction, count, ending)))

    def refuse(self) -> None:
        """Refuse new connections; open ones go on."""
        self._do(self._deaf)

    def accept(self) -> None:
        """End `refuse`, on the same port."""
        self._do(self._listen)

    def off(self) -> None:
        """As if the server's host were switched off by force: reset all, refuse new ones."""
        self.refuse()
        self.reset()

    def on(self) -> None:
        self.release()
        self.accept()

    def swallow(
        self, marker: bytes, ending: Ending = "cut", *, skip: int = 0, executed: bool = True
    ) -> Swallow:
        """Lose the answer to the next request with `marker`, then end its connection so.

        The server gets the request and has answered it when the connection ends (`executed=False`:
        it never gets it). `skip`: how many such requests pass before.
        """
        order = Swallow(marker, ending, skip, executed)
        self._do(lambda: self._swallows.append(order))
        return order

    def clear(self) -> None:
        """Forget all orders; open connections go on."""

        def act() -> None:
            self._round_trip, self._budget = 0.0, None
            self._swallows.clear()

        self._do(act)
        self.on()


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """`proxy_to(server)` before a RedisServer, PostgresServer or address; ended with the test."""
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
