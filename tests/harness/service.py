"""A service under test: its settings, its program, and the systemd that it talks to.

`systemd` listens where NOTIFY_SOCKET points and keeps every message with its time; `service`
starts the program with quick settings, changed as a test wants.
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

# What a person writes around the service; `HOOKS` is where a test has code of its own.
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

# A hook that holds the drain thread for as long as a file is there.
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
    """The other end of NOTIFY_SOCKET."""

    def __init__(self) -> None:
        name = f"processor-test-{uuid.uuid4().hex}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name)
        self.environ = {"NOTIFY_SOCKET": "@" + name}
        self.heard: list[tuple[float, Message]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(65536):
            lines = data.decode().split("\n")
            self.heard.append((time.monotonic(), dict(line.split("=", 1) for line in lines)))

    def watchdog(self, seconds: float) -> Systemd:
        """Have it want a sign of life within `seconds`."""
        self.environ["WATCHDOG_USEC"] = str(int(seconds * 1e6))
        return self

    def times(self, name: str, value: str = "1") -> list[float]:
        """When it heard `name`=`value`."""
        return [at for at, message in list(self.heard) if message.get(name) == value]

    @property
    def words(self) -> list[str]:
        """What it heard, in order, without signs of life and bare status lines."""
        wanted = ("READY", "RELOADING", "STOPPING")
        return [name for _, message in list(self.heard) for name in wanted if name in message]

    @property
    def status(self) -> str:
        """The last status line."""
        said = [message["STATUS"] for _, message in list(self.heard) if "STATUS" in message]
        return said[-1] if said else ""

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.times("WATCHDOG")[-1]

    def longest_silence(self, begin: float, end: float) -> float:
        """The longest time between two signs of life in a span."""
        at = [begin, *(each for each in self.times("WATCHDOG") if begin <= each <= end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(at))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Service:
    """A service that runs, with its settings in a file."""

    def __init__(self, process: Process, path: Path, systemd: Systemd, database: Database) -> None:
        self.process, self.path = process, path
        self.systemd, self.database = systemd, database

    def started(self) -> Service:
        """Wait until it has said READY."""
        wait_until(lambda: self.systemd.times("READY") or self._ended(), message=self._said)
        return self

    def _ended(self) -> bool:
        if not self.process.running:
            raise AssertionError(f"ended with {self.process.returncode}:\n{self.process.output}")
        return False

    def _said(self) -> str:
        return f"what the service waits for; it said:\n{self.process.output}"

    def change(self, **changes: Any) -> None:
        """Write other settings into its file, at once for whoever reads it."""
        new = self.path.with_suffix(".new")
        settings = changed(yaml.safe_load(self.path.read_text()), changes)
        new.write_text(yaml.safe_dump(settings))
        os.replace(new, self.path)

    def reload(self) -> None:
        """SIGHUP, and wait until it has told the outcome."""
        before = len(self.systemd.times("READY"))
        self.process.send(signal.SIGHUP)
        wait_until(lambda: len(self.systemd.times("READY")) > before, message=self._said)

    def page(self, path: str) -> tuple[int, str]:
        """A page of it, once it listens."""
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
        """What was committed to the table `effect`."""
        return [row[0] for row in self.database.execute("select n from effect order by n")]


QUICK: dict[str, Any] = {
    "interval": 0.2,
    "health": {"bind": ""},
    "redis": {"timeout": 1.0},
    "database": {"init": True},
}


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with changes, section by section."""
    return settings | {
        name: settings[name] | value if isinstance(settings.get(name), dict) else value
        for name, value in changes.items()
    }


def settings_of(redis_url: str, dsn: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Quick settings for these servers, with changes."""
    servers = {"redis": {"url": redis_url}, "database": {"dsn": dsn}}
    return changed(changed(QUICK, servers), changes)


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    """What stands in for systemd."""
    systemd = Systemd()
    yield systemd
    systemd.close()


@pytest.fixture
def service(
    spawn: Spawn, systemd: Systemd, database: Database, redis_url: str, tmp_path: Path
) -> Callable[..., Service]:
    """`service(hooks="", environ=None, **changes of the settings)`: start one."""
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
    """host:port where nobody listens."""
    return f"{HOST}:{free_port()}"


@pytest.fixture
def taken_port() -> Iterator[socket.socket]:
    """A socket that listens and answers nobody."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener
