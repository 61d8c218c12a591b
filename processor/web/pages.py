"""The pages /health, /health/live, /health/ready and /metrics, as one WSGI callable, `application`.

A host application may mount it under any prefix; `server` runs it on `health.bind` for a service.
The pages show the state of the drain thread, what the observer's thread found in the servers, and
the counters of `metrics`. They query no server and change nothing, so no client can slow the drain
down: however many ask, the observer asks once a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from processor.runtime import drain_thread
from processor.telemetry.status import OUTAGES
from processor.web import prometheus

_UNHEALTHY = ("stuck", "stopped")
_NOT_READY = (*_UNHEALTHY, *OUTAGES)
JSON = "application/json"

Page = tuple[HTTPStatus, str, bytes]


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer GET and HEAD on the pages, as a WSGI application; read-only."""
    status, content_type, body = _page(environ)
    head = environ["REQUEST_METHOD"] == "HEAD"
    start_response(f"{status.value} {status.phrase}", [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *([("Allow", "GET, HEAD")] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
    ])  # fmt: skip
    return [] if head else [body]


def _page(environ: WSGIEnvironment) -> Page:
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _json({"error": "only GET and HEAD"}, HTTPStatus.METHOD_NOT_ALLOWED)
    path = environ.get("PATH_INFO", "").removesuffix("/")
    # A host that mounts the application at /health itself leaves an empty path, or /live.
    mounted = "/" + environ.get("SCRIPT_NAME", "").rpartition("/")[2] + path
    page = _PAGES.get(path) or _PAGES.get(mounted)
    if page is None:
        return _json({"error": "no such page", "pages": list(_PAGES)}, HTTPStatus.NOT_FOUND)
    return page()


def _health() -> Page:
    state = drain_thread.state()
    return _json(state, _code(state["background_processor"]["status"], _UNHEALTHY))


def _live() -> Page:
    return _summary(_UNHEALTHY)


def _ready() -> Page:
    return _summary(_NOT_READY)


def _summary(failing: tuple[str, ...]) -> Page:
    # Without the observer: a probe must not wait.
    state = drain_thread.judged()
    shown = {"status": state.status, "reason": state.reason}
    return _json(shown, _code(state.status, failing))


def _code(status: str, failing: tuple[str, ...]) -> HTTPStatus:
    return HTTPStatus.SERVICE_UNAVAILABLE if status in failing else HTTPStatus.OK


def _json(content: dict[str, Any], status: HTTPStatus) -> Page:
    return status, JSON, json.dumps(content).encode() + b"\n"


def _metrics() -> Page:
    return HTTPStatus.OK, *prometheus.exposition(drain_thread.observed())


_PAGES = {
    "/health": _health,
    "/health/live": _live,
    "/health/ready": _ready,
    "/metrics": _metrics,
}
