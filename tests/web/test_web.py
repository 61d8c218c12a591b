"""The pages: what they answer when mounted or served, and what clients cannot do to them."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from processor.config.settings import Health
from processor.runtime import drain_thread
from processor.telemetry import metrics
from processor.telemetry.status import LaneState, State
from processor.web import pages, server
from tests.harness.wait import wait_until

PAGES = ["/health", "/health/live", "/health/ready", "/metrics"]
HEALTHY = ["running", "standby", "paused"]

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The state of the processor; a test changes it to see it on the pages."""
    lanes = {"default:0": LaneState("running", depth=3, owner=True)}
    state = State("running", last_run=1735689605.0, processed=150, site="main", lanes=lanes)

    def publish(**changes: Any) -> None:
        changed = replace(state, **changes)
        monkeypatch.setattr(drain_thread, "judged", lambda: changed)
        monkeypatch.setattr(drain_thread, "observed", lambda: changed)

    publish()
    metrics.forget()
    yield publish
    metrics.forget()


def ask(path: str, method: str = "GET", prefix: str = "") -> Answer:
    """Call the WSGI application as a server would."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": prefix, "PATH_INFO": path}
    setup_testing_defaults(environ)
    head: list[Any] = []
    body = b"".join(pages.application(environ, lambda *args: head.extend(args)))  # type: ignore[arg-type]
    return int(head[0].split()[0]), dict(head[1]), body


# The content of the pages.


def test_health_shows_status_last_run_and_the_number_of_processed_transactions() -> None:
    code, headers, body = ask("/health")

    assert (code, headers["Content-Type"]) == (200, "application/json")
    shown = json.loads(body)["background_processor"]
    assert shown["status"] == "running"
    assert shown["last_run"] == "2025-01-01T00:00:05Z"
    assert shown["transactions_processed"] == 150


@pytest.mark.parametrize("page", ["/health", "/health/live", "/health/ready"])
@pytest.mark.parametrize("status", [*HEALTHY, "outage", "stuck", "stopped"])
def test_only_stuck_and_stopped_are_unhealthy_and_an_outage_is_only_not_ready(
    page: str, status: str, publish: Callable[..., None]
) -> None:
    publish(status=status)
    failing = ["stuck", "stopped", *(["outage"] if page == "/health/ready" else [])]

    assert ask(page)[0] == (503 if status in failing else 200)


def test_metrics_are_those_of_this_process_in_the_text_format_of_prometheus(
    publish: Callable[..., None]
) -> None:
    metrics.count("committed", 41)
    publish(status="outage", lanes={'a"b\nc': LaneState(depth=3)})

    code, headers, body = ask("/metrics")
    lines = body.decode().splitlines()

    assert code == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "processor_committed_total 41.0" in lines
    assert 'processor_depth{lane="a\\"b\\nc"} 3.0' in lines
    assert 'processor_status{status="outage"} 1.0' in lines
    assert 'processor_status{status="running"} 0.0' in lines


def test_the_prometheus_library_is_imported_only_when_metrics_are_requested() -> None:
    code = "import sys, processor.web; assert 'prometheus_client' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# Requests.


@pytest.mark.parametrize("page", PAGES)
def test_head_gets_the_headers_of_get_and_no_body(page: str) -> None:
    code, headers, body = ask(page, "HEAD")

    assert body == b""
    assert (code, headers) == ask(page)[:2]


@pytest.mark.parametrize("page", [*PAGES, "/nothing"])
@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", ""]
)
def test_nothing_can_be_changed_over_http(page: str, method: str) -> None:
    environ: dict[str, Any] = {"PATH_INFO": page}
    setup_testing_defaults(environ)
    environ["REQUEST_METHOD"] = method
    head: list[Any] = []
    pages.application(environ, lambda *args: head.extend(args))  # type: ignore[arg-type]

    assert head[0].startswith("405 ")
    assert dict(head[1])["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/nothing", "//health", "/health//", "/health/live/x", "/../health", "/health\0", "/HEALTH",
     "/%2e%2e/health", "/x" * 30_000, "/metrics/../health"],
)  # fmt: skip
def test_any_other_path_is_not_found_and_gets_the_same_json(path: str) -> None:
    code, headers, body = ask(path)

    assert (code, headers["Content-Type"]) == (404, "application/json")
    assert json.loads(body)["pages"] == PAGES
    assert body == ask("/nothing")[2]


@pytest.mark.parametrize("page", PAGES)
def test_a_slash_at_the_end_of_a_path_makes_no_difference(page: str) -> None:
    assert ask(f"{page}/")[1]["Content-Type"] == ask(page)[1]["Content-Type"]
    assert ask(f"{page}/")[0] == ask(page)[0] != 404


@pytest.mark.parametrize("prefix", ["/internal", "/a/b", "/health/x"])
def test_a_host_application_mounts_the_pages_under_its_own_prefix(prefix: str) -> None:
    def host(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"the host"]

    client = Client(DispatcherMiddleware(host, {prefix: pages.application}))

    assert client.get(f"{prefix}/health/ready").get_json()["status"] == "running"
    assert client.get(f"{prefix}/metrics").status_code == 200
    assert client.get(f"{prefix}/other").status_code == 404
    assert client.get("/health").data == b"the host"


def test_a_host_application_mounts_a_single_page_at_the_path_of_that_page() -> None:
    client = Client(DispatcherMiddleware(lambda *_: [], {
        "/health": pages.application, "/sub/metrics": pages.application,
    }))  # fmt: skip

    assert "background_processor" in client.get("/health").get_json()
    assert client.get("/health/live").get_json()["status"] == "running"
    assert client.get("/sub/metrics").status_code == 200


def test_a_mounted_page_answers_under_the_host_name_of_the_application() -> None:
    client = Client(pages.application)

    assert client.get("/health", headers={"Host": "shop.example.org"}).status_code == 200


# Served on `health.bind`.


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Server]:
    monkeypatch.setattr(server, "_LIFETIME", 2)
    serving = server.serve(Health(bind="127.0.0.1:0"))
    assert serving is not None
    yield serving
    serving.close()


def get(serving: server.Server, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*serving.address, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def send(serving: server.Server, request: bytes) -> bytes:
    """Send raw bytes and return everything received until the server closes."""
    with socket.create_connection(serving.address, timeout=10) as client:
        client.sendall(request)
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_the_pages_are_served_on_health_bind(served: server.Server) -> None:
    for page in PAGES:
        assert get(served, page)[0] == 200
    assert get(served, "/nothing")[0] == 404


def test_with_an_empty_health_bind_nothing_is_served() -> None:
    before = set(threading.enumerate())

    assert server.serve(Health(bind="")) is None
    assert set(threading.enumerate()) <= before


def test_the_pages_are_served_on_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        serving = server.serve(Health(bind="[::1]:0"))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    assert serving is not None
    try:
        assert get(serving, "/health", Host=f"[::1]:{serving.address[1]}")[0] == 200
    finally:
        serving.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "127.0.0.1.evil.example",
                                  "localhost.evil.example:80", "127.0.0.1, evil.example", "["])
def test_a_browser_that_reaches_loopback_by_a_foreign_name_is_refused(
    host: str, served: server.Server
) -> None:
    code, body = get(served, "/health", Host=host)

    assert code == 421
    assert b"background_processor" not in body


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8787", "127.0.0.1", "127.0.0.1:9", "[::1]:9"]
)
def test_a_local_client_may_use_any_local_name(host: str, served: server.Server) -> None:
    assert get(served, "/health", Host=host)[0] == 200


def test_a_probe_without_a_host_header_is_answered(served: server.Server) -> None:
    assert send(served, b"GET /health/live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize(("request_", "codes"), [
    (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"4"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n", b"4"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b"4"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n", b"4"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"4"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: lies\r\n\r\n", b"45"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n", b"4"),
])  # fmt: skip
def test_an_oversized_or_malformed_request_is_refused_and_the_next_one_answered(
    request_: bytes, codes: bytes, served: server.Server
) -> None:
    answer = send(served, request_)

    assert answer == b"" or answer.split()[1][:1] in [bytes([code]) for code in codes]
    assert b"Traceback" not in answer
    assert get(served, "/health")[0] == 200


def test_a_client_that_sends_a_byte_now_and_then_is_disconnected(served: server.Server) -> None:
    started = time.monotonic()
    with socket.create_connection(served.address, timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        client.setblocking(False)

        def ended() -> bool:
            try:
                client.send(b"a")
                return client.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        wait_until(ended, poll=0.1)
        assert time.monotonic() - started >= 1.5


def test_idle_clients_do_not_keep_others_out(served: server.Server) -> None:
    idle = [socket.create_connection(served.address, timeout=10) for _ in range(120)]
    try:
        assert get(served, "/health")[0] == 200
    finally:
        for client in idle:
            client.close()


def test_close_frees_the_port_and_ends_the_threads() -> None:
    before = set(threading.enumerate())
    serving = server.serve(Health(bind="127.0.0.1:0"))
    assert serving is not None
    host, port = serving.address
    assert get(serving, "/health")[0] == 200

    serving.close()

    wait_until(lambda: set(threading.enumerate()) <= before)
    again = server.serve(Health(bind=f"{host}:{port}"))
    assert again is not None
    again.close()


def test_a_port_in_use_is_an_error_and_leaves_no_thread(served: server.Server) -> None:
    before = set(threading.enumerate())

    with pytest.raises(OSError, match="in use"):
        server.serve(Health(bind=f"127.0.0.1:{served.address[1]}"))

    # Threads of an earlier test may end meanwhile.
    assert set(threading.enumerate()) <= before
