"""An embedded Redis (or Valkey) server."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from processor.embedded import binaries
from processor.embedded.server import HOST, Mode, Server, Settings

NOT_READY = (b"-LOADING", b"-MASTERDOWN")


class RedisServer(Server):
    """Listens on 127.0.0.1 and a unix socket.

    `settings` are lines of redis.conf, with values as written there; a list repeats the line.
    Without settings it stores nothing on disk. `port=0`: listen only on the socket.
    """

    what = "Redis"
    stop_signals: ClassVar[Mapping[Mode, int]] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGTERM,
        "immediate": signal.SIGKILL,
    }

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        program: binaries.Given = None,
        port: int | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__(settings, port=port, directory=directory)
        self.program = binaries.redis_program(program)

    @property
    def programs(self) -> set[str]:
        # Debian's redis-server is a link, and behaves according to the name it is called by.
        return {self.program.name, self.program.resolve().name}

    @property
    def version(self) -> str:
        return subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()

    @property
    def socket(self) -> Path:
        return self.sockets / "redis.sock"

    @property
    def url(self) -> str:
        return f"redis://{self._password}{HOST}:{self.port}/0" if self.port else self.socket_url

    @property
    def socket_url(self) -> str:
        return f"unix://{self._password}{self.socket}?db=0"

    @property
    def _password(self) -> str:
        password = str(self.settings.get("requirepass", ""))
        return f":{quote(password, safe='')}@" if password else ""

    def _prepare(self) -> list[str]:
        config = self.directory / "redis.conf"
        config.write_text(self._config())
        config.chmod(0o600)
        self.socket.unlink(missing_ok=True)
        return [str(self.program), str(config)]

    def _config(self) -> str:
        settings = {
            "bind": HOST,
            "port": self.port,
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "save": "",
            "appendonly": False,
        } | self.settings
        lines = []
        for name, value in settings.items():
            for each in value if isinstance(value, list) else [value]:
                word = ("no", "yes")[each] if isinstance(each, bool) else str(each)
                lines.append(f"{name} {word}\n" if word else f'{name} ""\n')
        return "".join(lines)

    def _ready(self) -> bool:
        """Asks on the unix socket, which needs no TLS even if the port does."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                answer = probe.recv(64)
        except OSError:
            return False
        return bool(answer) and not answer.startswith(NOT_READY)
