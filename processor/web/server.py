"""Serves the pages on `health.bind` with waitress, in a daemon thread."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from processor.config import addresses
from processor.config.settings import Health
from processor.web.pages import JSON, application

#: Seconds from accepting a connection to closing it. They count from the start, or a client that
#: sends a byte now and then would hold its connection indefinitely.
_LIFETIME = 10


class Server:
    """The pages on an address of their own, until `close`."""

    def __init__(self, settings: Health) -> None:
        # Imported late: a host application that mounts the pages brings its own server.
        from waitress.server import create_server

        host, _, port = settings.bind.rpartition(":")
        listener = _listen(host.strip("[]"), int(port))
        self.address = listener.getsockname()[:2]
        # Silenced: a hostile client could flood the log.
        logging.getLogger("waitress").setLevel(logging.CRITICAL)
        self._map: dict[int, Any] = {}
        server: Any = create_server(
            _only_local(host) if addresses.loopback(settings.bind) else application,
            map=self._map, sockets=[listener], threads=2, ident="processor",
            connection_limit=64, channel_timeout=_LIFETIME, cleanup_interval=1,
            max_request_header_size=16_384, max_request_body_size=1_024,
            log_socket_errors=False, asyncore_use_poll=True,
        )  # fmt: skip
        server.channel_class = _short_lived()
        self._server = server
        self._thread = threading.Thread(target=server.run, name="processor-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and close all connections."""
        from waitress.wasyncore import close_all

        # This runs in the serving thread, between two steps of its loop; the loop ends when the map
        # is empty. The thread may be awake and run it before the trigger is pulled; the trigger is
        # in the map too, so it must not be closed until then.
        pulled = threading.Event()

        def end() -> None:
            pulled.wait(_LIFETIME)
            close_all(self._map, ignore_all=True)

        self._server.trigger.pull_trigger(end)
        pulled.set()
        self._thread.join(_LIFETIME)
        self._server.task_dispatcher.shutdown(timeout=1)


def serve(settings: Health) -> Server | None:
    """Serve the pages on `health.bind`; None if that is empty. Raises OSError."""
    return Server(settings) if settings.bind else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=64)


def _short_lived() -> type:
    from waitress.channel import HTTPChannel

    class ShortLived(HTTPChannel):
        """A connection that is closed at a certain age, however busy it looks."""

        @property
        def last_activity(self) -> float:
            return float(self.creation_time)

        @last_activity.setter
        def last_activity(self, _now: float) -> None:
            pass

    return ShortLived


def _only_local(bound: str) -> WSGIApplication:
    """The application for loopback only: it refuses requests for any other host name.

    Otherwise a web site could point its own name at loopback and have a browser on this machine
    read the pages for it (DNS rebinding).
    """
    names = {"localhost", "127.0.0.1", "[::1]", bound.lower()}

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        # Only a browser always sends the name; a probe without one is let through.
        if not host or name in names:
            return application(environ, start_response)
        refusal = json.dumps({"error": "this address is for local clients"}).encode() + b"\n"
        start_response("421 Misdirected Request", [
            ("Content-Type", JSON), ("Content-Length", str(len(refusal))),
        ])  # fmt: skip
        return [refusal]

    return guarded
