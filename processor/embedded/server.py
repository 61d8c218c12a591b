"""What all servers share: one process with its directory, port and log.

`RedisServer` and `PostgresServer` derive from `Server`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from processor.embedded import guardian
from processor.errors import Unavailable

HOST = "127.0.0.1"
# Below the range that the kernel uses for outgoing connections: while a server is stopped, no
# outgoing connection may take its port.
PORTS = range(10_000, 32_000)
PORT_ATTEMPTS = 5
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
# A socket path has at most 107 bytes, including names such as .s.PGSQL.12345.
LONGEST_BASE = 60
LONGEST_SOCKETS = 85

Mode = Literal["smart", "fast", "immediate"]
Setting = str | int | float | bool | list[str]
Settings = Mapping[str, Setting]


def free_port() -> int:
    """A free port of the loopback interface."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port


class Server(ABC):
    """A server that runs as a child of this program. `settings` may be changed before a start.

    Its directory is a temporary one, unless `directory` names one: that is kept, with its data.
    """

    what = "server"
    stop_signals: ClassVar[Mapping[Mode, int]] = {}

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        port: int | None = None,
        directory: Path | None = None,
    ) -> None:
        self.settings: dict[str, Setting] = dict(settings or {})
        self.port = free_port() if port is None else port
        self._port_is_fixed = port is not None
        self._kept = directory
        self._directory: Path | None = None
        self._sockets: Path | None = None
        self._temporary: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None

    # What a subclass defines.

    @property
    @abstractmethod
    def programs(self) -> set[str]:
        """Names of the programs that run in the directory."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The output of the program for --version."""

    @abstractmethod
    def _prepare(self) -> list[str]:
        """Write the files that the server needs to start; return its command."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it accepts commands; must not block."""

    def _owner(self) -> tuple[int, int] | None:
        """The user and group to run as, None for those of this program."""
        return None

    # Starting and stopping.

    def start(self) -> Self:
        """Start it, unless it runs, and wait until it accepts commands. Raises Unavailable."""
        attempts = 1 if self._port_is_fixed else PORT_ATTEMPTS
        while not self.running:
            self.log.touch()
            offset = self.log.stat().st_size
            attempts -= 1
            try:
                self._launch()
            except Unavailable:
                if not attempts or not self._port_was_taken(offset):
                    raise
                self.port = free_port()
        # Clients and proxies may use the port from now on.
        self._port_is_fixed = True
        return self

    def stop(self, mode: Mode = "fast", timeout: float = STOP_TIMEOUT) -> None:
        """Stop it cleanly. If that takes too long, kill it and raise Unavailable."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.thaw()
        process.send_signal(self.stop_signals[mode])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._failure(f"did not stop ({mode}) within {timeout:g} s") from None

    def kill(self) -> None:
        """Send SIGKILL to the server and its children; return when none is left."""
        if self._directory is None:
            return
        guardian.end(self._directory, self.programs)
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, mode: Mode = "fast") -> Self:
        self.stop(mode)
        return self.start()

    def freeze(self, *, children: bool = True) -> None:
        """SIGSTOP: connections stay open, but get no reply.

        Without `children`, PostgreSQL's sessions continue and only new connections wait.
        """
        guardian.send([self.pid], signal.SIGSTOP)
        if children:
            # Twice: before the first signal takes effect, the server may fork another child.
            for _ in range(2):
                guardian.send(self.pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        guardian.send(self.pids(), signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its temporary directory, without which a start begins without data."""
        self.kill()
        while self._temporary:
            shutil.rmtree(self._temporary.pop(), ignore_errors=True)
        self._directory = self._sockets = self._process = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    # Properties.

    @property
    def directory(self) -> Path:
        """The directory, created at the first use."""
        if self._directory is None:
            kept = self._kept
            self._directory = self._make_temporary() if kept is None else self._take_kept(kept)
        return self._directory

    @property
    def sockets(self) -> Path:
        """Where its unix sockets are: in its directory, unless that path is too long for one."""
        if self._sockets is None:
            fits = len(os.fsencode(self.directory)) <= LONGEST_SOCKETS
            self._sockets = self.directory if fits else self._make_temporary()
        return self._sockets

    def _make_temporary(self) -> Path:
        base = tempfile.gettempdir()
        base = base if len(os.fsencode(base)) <= LONGEST_BASE else "/tmp"
        directory = Path(tempfile.mkdtemp(prefix="processor-", dir=base))
        self._temporary.append(directory)
        if owner := self._owner():
            os.chown(directory, *owner)
        guardian.watch(directory, self.programs)
        return directory

    def _take_kept(self, directory: Path) -> Path:
        """Create the directory, or end what a program killed together with its guardian left."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without links: processes are found by their working directory, and a link may lead out of
        # a directory that the server's user cannot enter.
        directory = directory.resolve()
        if owner := self._owner():
            os.chown(directory, *owner)
        guardian.end(directory, self.programs)
        guardian.watch(directory, self.programs, keep=True)
        return directory

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's main process (PostgreSQL: the postmaster)."""
        if self._process is None:
            raise Unavailable(f"{self.what} was never started", hint="call start() first")
        return self._process.pid

    def pids(self) -> list[int]:
        """All its processes, including children and frozen ones."""
        return guardian.processes(self._directory, self.programs) if self._directory else []

    # Inside.

    def _launch(self) -> None:
        command = self._prepare()
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._context())
            self._await(self._ready, START_TIMEOUT)
        except BaseException:
            self.kill()
            raise

    def _await(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.running:
                raise self._failure("did not start")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready within {timeout:g} s")
            time.sleep(0.005)

    def _context(self) -> dict[str, Any]:
        """How its programs run: in their own session (no Ctrl-C), without the user's settings."""
        unwanted = ("PG", "LC_", "LANG", "NOTIFY_SOCKET")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        context: dict[str, Any] = {
            "cwd": self.directory,
            "env": environ | {"LC_ALL": "C"},
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }
        if owner := self._owner():
            context |= {"user": owner[0], "group": owner[1], "extra_groups": []}
        return context

    def _port_was_taken(self, offset: int) -> bool:
        with self.log.open("rb") as log:
            log.seek(offset)
            return b"in use" in log.read().lower()

    def _failure(self, problem: str) -> Unavailable:
        tail = self.log_tail() or "(empty)"
        return Unavailable(f"{self.what} {problem}; its log ends with:\n{tail}\n")
