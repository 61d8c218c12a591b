"""A service under test: its settings, its program, and a stand-in for systemd.

`systemd` listens where NOTIFY_SOCKET points and keeps every message with its time. `service` starts
the program with settings for quick tests, which a test can change.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.embedded.server import HOST, free_port
from tests.harness.process import Process, Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until

# A program that runs the service; a test puts its own code into `hooks`.
PROGRAM = """
import os, sys, time
from processor.config import loader
from processor.runtime import drain_thread
from processor.service import foreground
from processor.errors import ConfigError

{hooks}

try:
    sys.exit(foreground.run(loader.load(sys.argv[1]), sys.argv[1]))
except ConfigError as error:
    print("ConfigError", error)
    sys.exit(78)
"""

# A hook that holds the drain thread as long as a file exists.
HOLD = """
def hold():
    if os.path.exists({path!r}):
        print("the drain thread is held", flush=True)
    while os.path.exists({path!r}):
        time.sleep(0.01)

drain_thread.hooks.before_pass.append(hold)
"""

Message = dict[str, str]


class Systemd:
    """Receives what a service sends to NOTIFY_SOCKET."""

    def __init__(self) -> None:
        name = f"processor-test-{uuid.uuid4().hex}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name)
        self.environ = {"NOTIFY_SOCKET": "@" + name}
        self.messages: list[tuple[float, Message]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(65536):
            lines = data.decode().split("\n")
            self.messages.append((time.monotonic(), dict(line.split("=", 1) for line in lines)))

    def watchdog(self, seconds: float) -> Systemd:
        """Set the watchdog limit to `seconds`."""
        self.environ["WATCHDOG_USEC"] = str(int(seconds * 1e6))
        return self

    def times(self, name: str, value: str = "1") -> list[float]:
        """Return the times at which `name`=`value` was received."""
        return [at for at, message in list(self.messages) if message.get(name) == value]

    @property
    def notifications(self) -> list[str]:
        """The received READY, RELOADING and STOPPING, in order."""
        wanted = ("READY", "RELOADING", "STOPPING")
        return [name for _, message in list(self.messages) for name in wanted if name in message]

    @property
    def status(self) -> str:
        """The last status line."""
        lines = [message["STATUS"] for _, message in list(self.messages) if "STATUS" in message]
        return lines[-1] if lines else ""

    def silence(self) -> float:
        """Return the seconds since the last watchdog message."""
        return time.monotonic() - self.times("WATCHDOG")[-1]

    def longest_silence(self, begin: float, end: float) -> float:
        """Return the longest time in seconds between two watchdog messages in a span."""
        at = [begin, *(each for each in self.times("WATCHDOG") if begin <= each <= end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(at))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Service:
    """A running service with its settings in a file."""

    def __init__(self, process: Process, path: Path, systemd: Systemd, database: Database) -> None:
        self.process, self.path = process, path
        self.systemd, self.database = systemd, database

    def started(self) -> Service:
        """Wait until the service has sent READY."""
        wait_until(lambda: self.systemd.times("READY") or self._ended(), message=self._said)
        return self

    def _ended(self) -> bool:
        if not self.process.running:
            raise AssertionError(f"ended with {self.process.returncode}:\n{self.process.output}")
        return False

    def _said(self) -> str:
        return f"a message of the service; its output:\n{self.process.output}"

    def change(self, **changes: Any) -> None:
        """Replace the settings file atomically by one with changes."""
        new = self.path.with_suffix(".new")
        settings = changed(yaml.safe_load(self.path.read_text()), changes)
        new.write_text(yaml.safe_dump(settings))
        os.replace(new, self.path)

    def reload(self) -> None:
        """Send SIGHUP and wait until the service is READY again."""
        before = len(self.systemd.times("READY"))
        self.process.send(signal.SIGHUP)
        wait_until(lambda: len(self.systemd.times("READY")) > before, message=self._said)

    def page(self, path: str) -> tuple[int, str]:
        """Return status and body of a page, waiting until the service listens."""
        host, port = yaml.safe_load(self.path.read_text())["health"]["bind"].split(":")

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            finally:
                connection.close()

        return wait_until(ask, ignore=OSError)

    def health(self) -> dict[str, Any]:
        return json.loads(self.page("/health")[1])["background_processor"]

    def effects(self) -> list[int]:
        """Return the numbers committed to the table `effect`."""
        return [row[0] for row in self.database.execute("select n from effect order by n")]


QUICK: dict[str, Any] = {
    "interval": 0.2,
    "health": {"bind": ""},
    "redis": {"timeout": 1.0},
    "database": {"init": True},
}


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with changes, section by section."""
    return settings | {
        name: settings[name] | value if isinstance(settings.get(name), dict) else value
        for name, value in changes.items()
    }


def settings_of(redis_url: str, dsn: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return quick settings for these servers, with changes."""
    servers = {"redis": {"url": redis_url}, "database": {"dsn": dsn}}
    return changed(changed(QUICK, servers), changes)


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    """A stand-in for systemd."""
    systemd = Systemd()
    yield systemd
    systemd.close()


@pytest.fixture
def service(
    spawn: Spawn, systemd: Systemd, database: Database, redis_url: str, tmp_path: Path
) -> Callable[..., Service]:
    """`service(hooks="", environ=None, **changes of the settings)`: start a service."""
    database.execute("create table effect (n int)")

    def start(hooks: str = "", environ: dict[str, str] | None = None, **changes: Any) -> Service:
        path = tmp_path / "processor.yml"
        path.write_text(yaml.safe_dump(settings_of(redis_url, database.dsn, changes)))
        environ = systemd.environ | (environ or {})
        process = spawn(PROGRAM.format(hooks=hooks), str(path), **environ)
        return Service(process, path, systemd, database)

    return start


@pytest.fixture
def free_address() -> str:
    """host:port where nothing listens."""
    return f"{HOST}:{free_port()}"


@pytest.fixture
def taken_port() -> Iterator[socket.socket]:
    """A socket that listens and never answers."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener
