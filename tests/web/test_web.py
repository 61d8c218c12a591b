"""The pages: what they answer, mounted and served, and what clients cannot do to them."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from processor.config.settings import Health
from processor.runtime import drain_thread
from processor.telemetry import metrics
from processor.telemetry.status import LaneState, State, as_mapping
from processor.web import pages
from tests.harness.wait import wait_until

PAGES = ["/health", "/health/live", "/health/ready", "/metrics"]
FINE = ["running", "standby", "paused"]

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the drain thread has published: change it to see it on the pages."""
    lanes = {"default:0": LaneState("running", depth=3, owner=True)}
    state = State("running", last_run=1735689605.0, processed=150, site="main", lanes=lanes)
    told = as_mapping(state, version="1")
    monkeypatch.setattr(drain_thread, "state", lambda: told)
    metrics.forget()
    yield told
    metrics.forget()


def ask(path: str, method: str = "GET", prefix: str = "") -> Answer:
    """Ask the WSGI callable as a server would."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": prefix, "PATH_INFO": path}
    setup_testing_defaults(environ)
    told: list[Any] = []
    body = b"".join(pages.application(environ, lambda *said: told.extend(said)))  # type: ignore[arg-type]
    return int(told[0].split()[0]), dict(told[1]), body


# What a page says.


def test_health_says_status_last_run_and_how_many_were_processed() -> None:
    code, headers, body = ask("/health")

    assert (code, headers["Content-Type"]) == (200, "application/json")
    told = json.loads(body)["background_processor"]
    assert told["status"] == "running"
    assert told["last_run"] == "2025-01-01T00:00:05Z"
    assert told["transactions_processed"] == 150


@pytest.mark.parametrize("page", ["/health", "/health/live", "/health/ready"])
@pytest.mark.parametrize("status", [*FINE, "outage", "stuck", "stopped"])
def test_only_stuck_and_stopped_are_unwell_and_an_outage_only_not_ready(
    page: str, status: str, published: dict[str, Any]
) -> None:
    published["background_processor"]["status"] = status
    failing = ["stuck", "stopped", *(["outage"] if page == "/health/ready" else [])]

    assert ask(page)[0] == (503 if status in failing else 200)


def test_metrics_are_the_figures_of_this_process_as_prometheus_reads_them(
    published: dict[str, Any]
) -> None:
    metrics.count("committed", 41)
    metrics.gauge("depth", 3, lane='a"b\nc')
    published["background_processor"]["status"] = "outage"

    code, headers, body = ask("/metrics")
    lines = body.decode().splitlines()

    assert code == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "processor_committed_total 41.0" in lines
    assert 'processor_depth{lane="a\\"b\\nc"} 3.0' in lines
    assert 'processor_status{status="outage"} 1.0' in lines


@pytest.mark.parametrize("name", metrics.FIGURES)
def test_every_figure_can_be_exposed(name: str) -> None:
    kind = metrics.FIGURES[name][0]
    (metrics.count if kind == "counter" else metrics.gauge)(name, 7)

    assert f"processor_{name}{'_total' if kind == 'counter' else ''} 7.0" in ask("/metrics")[
        2
    ].decode().splitlines()


def test_the_metrics_library_is_loaded_by_whoever_asks_for_metrics_and_nobody_else() -> None:
    code = "import sys, processor.web; assert 'prometheus_client' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# What can be asked.


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
    told: list[Any] = []
    pages.application(environ, lambda *said: told.extend(said))  # type: ignore[arg-type]

    assert told[0].startswith("405 ")
    assert dict(told[1])["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/nothing", "//health", "/health/", "/health/live/x", "/../health", "/health\0", "/HEALTH",
     "/%2e%2e/health", "/x" * 30_000, "/metrics/../health"],
)  # fmt: skip
def test_any_other_path_is_not_found_and_told_so_in_json_of_one_size(path: str) -> None:
    code, headers, body = ask(path)

    assert (code, headers["Content-Type"]) == (404, "application/json")
    assert json.loads(body)["pages"] == PAGES
    assert body == ask("/nothing")[2]


@pytest.mark.parametrize("prefix", ["/internal", "/a/b", "/health/x"])
def test_a_host_application_mounts_the_pages_under_a_prefix_of_its_own(prefix: str) -> None:
    def host(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"the host"]

    client = Client(DispatcherMiddleware(host, {prefix: pages.application}))

    assert client.get(f"{prefix}/health/ready").get_json()["status"] == "running"
    assert client.get(f"{prefix}/metrics").status_code == 200
    assert client.get(f"{prefix}/other").status_code == 404
    assert client.get("/health").data == b"the host"


def test_a_host_application_mounts_a_page_at_its_own_name() -> None:
    client = Client(DispatcherMiddleware(lambda *_: [], {
        "/health": pages.application, "/sub/metrics": pages.application,
    }))  # fmt: skip

    assert "background_processor" in client.get("/health").get_json()
    assert client.get("/health/live").get_json()["status"] == "running"
    assert client.get("/sub/metrics").status_code == 200


def test_a_mounted_page_answers_under_the_hosts_own_name() -> None:
    client = Client(pages.application)

    assert client.get("/health", headers={"Host": "shop.example.org"}).status_code == 200


# Served on an address of its own.


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[pages.Serving]:
    monkeypatch.setattr(pages, "_LIFE", 2)
    serving = pages.serve(Health(bind="127.0.0.1:0"))
    assert serving is not None
    yield serving
    serving.close()


def get(serving: pages.Serving, path: str, **headers: str) -> tuple[int, bytes]:
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


def send(serving: pages.Serving, request: bytes) -> bytes:
    """Send raw bytes, and give all that comes back until the server closes."""
    with socket.create_connection(serving.address, timeout=10) as client:
        client.sendall(request)
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_the_pages_are_served_where_health_bind_says(served: pages.Serving) -> None:
    for page in PAGES:
        assert get(served, page)[0] == 200
    assert get(served, "/nothing")[0] == 404


def test_an_empty_health_bind_serves_nowhere() -> None:
    before = set(threading.enumerate())

    assert pages.serve(Health(bind="")) is None
    assert set(threading.enumerate()) <= before


def test_the_pages_are_served_on_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        serving = pages.serve(Health(bind="[::1]:0"))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    assert serving is not None
    try:
        assert get(serving, "/health", Host=f"[::1]:{serving.address[1]}")[0] == 200
    finally:
        serving.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "127.0.0.1.evil.example",
                                  "localhost.evil.example:80", "127.0.0.1, evil.example", "["])
def test_a_browser_led_to_loopback_by_a_foreign_name_gets_nothing(
    host: str, served: pages.Serving
) -> None:
    code, body = get(served, "/health", Host=host)

    assert code == 421
    assert b"background_processor" not in body


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8787", "127.0.0.1", "127.0.0.1:9", "[::1]:9"]
)
def test_a_local_client_is_answered_by_any_local_name(host: str, served: pages.Serving) -> None:
    assert get(served, "/health", Host=host)[0] == 200


def test_a_probe_without_a_host_header_is_answered(served: pages.Serving) -> None:
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
def test_a_request_out_of_bounds_is_refused_and_the_next_one_answered(
    request_: bytes, codes: bytes, served: pages.Serving
) -> None:
    answer = send(served, request_)

    assert answer == b"" or answer.split()[1][:1] in [bytes([code]) for code in codes]
    assert b"Traceback" not in answer
    assert get(served, "/health")[0] == 200


def test_a_client_that_sends_a_byte_now_and_then_is_given_up(served: pages.Serving) -> None:
    begun = time.monotonic()
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
        assert time.monotonic() - begun >= 1.5


def test_clients_that_say_nothing_keep_nobody_out_for_long(served: pages.Serving) -> None:
    idle = [socket.create_connection(served.address, timeout=10) for _ in range(120)]
    try:
        assert get(served, "/health")[0] == 200
    finally:
        for client in idle:
            client.close()


def test_closing_frees_the_port_and_ends_the_threads() -> None:
    before = set(threading.enumerate())
    serving = pages.serve(Health(bind="127.0.0.1:0"))
    assert serving is not None
    host, port = serving.address
    assert get(serving, "/health")[0] == 200

    serving.close()

    wait_until(lambda: set(threading.enumerate()) <= before)
    again = pages.serve(Health(bind=f"{host}:{port}"))
    assert again is not None
    again.close()


def test_a_port_that_is_taken_is_an_error_and_leaves_no_thread(served: pages.Serving) -> None:
    before = set(threading.enumerate())

    with pytest.raises(OSError, match="in use"):
        pages.serve(Health(bind=f"127.0.0.1:{served.address[1]}"))

    # Threads of an earlier test may end meanwhile.
    assert set(threading.enumerate()) <= before
