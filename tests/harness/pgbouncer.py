"""A real PgBouncer in front of a PostgreSQL server, in the mode that a test asks for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from processor.embedded import PostgresServer
from processor.embedded.postgres_server import SUPERUSER
from processor.embedded.server import HOST, free_port
from tests.harness.wait import wait_until

#: Where `.ci/pgbouncer` unpacks the Debian package.
_UNPACKED = Path(__file__).parents[2] / ".ci/debian"

_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = {host}
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""


def program() -> tuple[str, dict[str, str]]:
    """Return the program and its environment; skip the test if there is none."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    found = shutil.which("pgbouncer", path=path)
    if found is not None:
        return found, dict(os.environ)
    unpacked = _UNPACKED / "usr/sbin/pgbouncer"
    if not unpacked.exists():
        pytest.skip("no PgBouncer: install the package pgbouncer, or run `sh .ci/pgbouncer`")
    libraries = ":".join({str(file.parent) for file in _UNPACKED.rglob("*.so.*")})
    return str(unpacked), {**os.environ, "LD_LIBRARY_PATH": libraries}


class PgBouncer:
    """Listens on `port` for the databases of `server`; `size` sessions for each database."""

    def __init__(self, server: PostgresServer, directory: Path, mode: str, size: int) -> None:
        self.server = server
        self.port = free_port()
        path, environment = program()
        file = directory / "pgbouncer.ini"
        file.write_text(_CONFIGURATION.format(
            host=HOST, port=server.port, user=SUPERUSER, listen=self.port, mode=mode, size=size
        ))  # fmt: skip
        # It refuses to run as root.
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [path, "-q", *user, file], env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "PgBouncer has ended"
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def dsn_of(self, database: str) -> str:
        return self.server.dsn_of(database, port=self.port)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def pgbouncer_to(tmp_path: Path) -> Iterator[Callable[..., PgBouncer]]:
    """`pgbouncer_to(server, mode, size=...)`; closed at the end of the test."""
    with ExitStack() as stack:

        def make(server: PostgresServer, mode: str, size: int = 20) -> PgBouncer:
            pooler = PgBouncer(server, tmp_path, mode, size)
            stack.callback(pooler.close)
            return pooler

        yield make
