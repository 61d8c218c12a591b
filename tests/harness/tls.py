"""TLS in front of a server without TLS: a self-signed certificate and a proxy that decrypts.

The servers from the wheels have no TLS, and these tests are about the client.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

HOST = "127.0.0.1"


def certificate(directory: Path, name: str = f"IP:{HOST}") -> tuple[Path, Path]:
    """Create a self-signed certificate for `name`; return the files of certificate and key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    made, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", made, "-subj", "/CN=test", "-addext", f"subjectAltName={name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


class Door(socketserver.ThreadingTCPServer):
    """Accepts TLS and forwards the decrypted bytes to `target`, (host, port)."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target: tuple[str, int], made: Path, key: Path) -> None:
        self.target = target
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(made, key)
        #: TLS versions of the accepted connections.
        self.versions: list[str | None] = []
        super().__init__((HOST, 0), Visit)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, **options: object) -> str:
        """Return the Redis URL of the door; `options` become its parameters."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"rediss://{HOST}:{self.server_address[1]}/0?{query}"

    def handle_error(self, *_: object) -> None:
        """Ignore errors: a client that does not trust the certificate disconnects."""


class Visit(socketserver.BaseRequestHandler):
    """One connection through the door."""

    server: Door

    def handle(self) -> None:
        with (
            self.server.context.wrap_socket(self.request, server_side=True) as outside,
            socket.create_connection(self.server.target) as inside,
        ):
            self.server.versions.append(outside.version())
            back = threading.Thread(target=self._carry, args=(inside, outside), daemon=True)
            back.start()
            self._carry(outside, inside)
            back.join()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def door_to(tmp_path: Path) -> Iterator[Callable[..., Door]]:
    """`door_to(port, name)`: TLS in front of a port, with a certificate for `name`."""
    with ExitStack() as stack:

        def make(port: int, name: str = f"IP:{HOST}") -> Door:
            door = Door((HOST, port), *certificate(tmp_path, name))
            stack.callback(door.server_close)
            stack.callback(door.shutdown)
            return door

        yield make
