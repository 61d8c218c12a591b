"""The pages /health, /health/live, /health/ready and /metrics: one WSGI callable, `application`.

A host application may mount it under any prefix; `serve` runs it on `health.bind` for a service.
All it reads is the state that the drain thread publishes and the figures of `metrics`: it asks no
server, takes no lock and changes nothing, so no client can slow the work down.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from processor.config import addresses
from processor.config.settings import Health
from processor.runtime import drain_thread
from processor.telemetry import metrics

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_UNWELL = ("stuck", "stopped")
_UNREADY = (*_UNWELL, "outage")
_JSON = "application/json"

Page = tuple[HTTPStatus, str, bytes]


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The pages as WSGI wants them; reads only, and answers GET and HEAD alone."""
    status, kind, body = _page(environ)
    head = environ["REQUEST_METHOD"] == "HEAD"
    start_response(f"{status.value} {status.phrase}", [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *([("Allow", "GET, HEAD")] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
    ])  # fmt: skip
    return [] if head else [body]


def _page(environ: WSGIEnvironment) -> Page:
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _json({"error": "only GET and HEAD"}, HTTPStatus.METHOD_NOT_ALLOWED)
    path = environ.get("PATH_INFO", "")
    # Mounted at /health itself, what is left of the path for us is empty, or /live.
    mounted = "/" + environ.get("SCRIPT_NAME", "").rpartition("/")[2] + path
    page = _PAGES.get(path) or _PAGES.get(mounted)
    if page is None:
        return _json({"error": "no such page", "pages": list(_PAGES)}, HTTPStatus.NOT_FOUND)
    return page()


def _health() -> Page:
    state = drain_thread.state()
    return _json(state, _code(state, _UNWELL))


def _live() -> Page:
    return _word(_UNWELL)


def _ready() -> Page:
    return _word(_UNREADY)


def _word(failing: tuple[str, ...]) -> Page:
    state = drain_thread.state()
    told = {name: state["background_processor"][name] for name in ("status", "reason")}
    return _json(told, _code(state, failing))


def _code(state: dict[str, Any], failing: tuple[str, ...]) -> HTTPStatus:
    failed = state["background_processor"]["status"] in failing
    return HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK


def _json(content: dict[str, Any], status: HTTPStatus) -> Page:
    return status, _JSON, json.dumps(content).encode() + b"\n"


def _metrics() -> Page:
    # Late: it takes 50 ms to import, and a host that never asks should not pay for it.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures())
    return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)


class _Figures:
    """The figures of `metrics` and the status, as prometheus_client collects them."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        families: dict[str, Any] = {}
        for name, labels, value in metrics.snapshot():
            kind, meaning = metrics.FIGURES[name]
            if name not in families:
                families[name] = kinds[kind](f"processor_{name}", meaning, labels=dict(labels))
            families[name].add_metric([content for _, content in labels], value)
        yield from families.values()
        status = drain_thread.state()["background_processor"]["status"]
        family = GaugeMetricFamily("processor_status", "1: it is in this one", labels=["status"])
        family.add_metric([status], 1)
        yield family


_PAGES = {
    "/health": _health,
    "/health/live": _live,
    "/health/ready": _ready,
    "/metrics": _metrics,
}


class Serving:
    """The pages on an address of their own, in a daemon thread, until `close`."""

    def __init__(self, settings: Health) -> None:
        # Late: a host application that mounts the pages brings a server of its own.
        from waitress.server import create_server

        host, _, port = settings.bind.rpartition(":")
        listener = _listen(host.strip("[]"), int(port))
        self.address = listener.getsockname()[:2]
        # Its complaints about clients are theirs to make at any rate they like.
        logging.getLogger("waitress").setLevel(logging.CRITICAL)
        self._map: dict[int, Any] = {}
        server: Any = create_server(
            _only_local(host) if addresses.loopback(settings.bind) else application,
            map=self._map, sockets=[listener], threads=2, ident="processor",
            connection_limit=64, channel_timeout=_LIFE, cleanup_interval=1,
            max_request_header_size=16_384, max_request_body_size=1_024,
            log_socket_errors=False, asyncore_use_poll=True,
        )  # fmt: skip
        server.channel_class = _brief()
        self._server = server
        self._thread = threading.Thread(target=server.run, name="processor-web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end what is open."""
        from waitress.wasyncore import close_all

        # In the serving thread, between two of its steps; with nothing left to watch it ends. That
        # thread may be awake and at it before the trigger is pulled, and the trigger is in the map.
        pulled = threading.Event()

        def end() -> None:
            pulled.wait(_LIFE)
            close_all(self._map, ignore_all=True)

        self._server.trigger.pull_trigger(end)
        pulled.set()
        self._thread.join(_LIFE)
        self._server.task_dispatcher.shutdown(timeout=1)


# Seconds from accepting a connection to closing it. It counts from the start: a client that sends
# a byte now and then would otherwise keep its place for ever.
_LIFE = 10


def _brief() -> type:
    from waitress.channel import HTTPChannel

    class Brief(HTTPChannel):
        """A connection that is given up at a certain age, however busy it looks."""

        @property
        def last_activity(self) -> float:
            return float(self.creation_time)

        @last_activity.setter
        def last_activity(self, _now: float) -> None:
            pass

    return Brief


def serve(settings: Health) -> Serving | None:
    """Serve the pages on `health.bind`; None where that is empty. Raises OSError."""
    return Serving(settings) if settings.bind else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=64)


def _only_local(bound: str) -> WSGIApplication:
    """Refuse a browser that was led here by a name of somebody else's that resolves to loopback."""
    names = {"localhost", "127.0.0.1", "[::1]", bound.lower()}

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not host or name in names:  # what is no browser may leave the name out
            return application(environ, start_response)
        refused = json.dumps({"error": "this address is for local clients"}).encode() + b"\n"
        start_response("421 Misdirected Request", [
            ("Content-Type", _JSON), ("Content-Length", str(len(refused))),
        ])  # fmt: skip
        return [refused]

    return guarded
