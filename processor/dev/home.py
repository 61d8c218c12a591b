"""The directory of the development servers: who uses it, where they listen, how it is emptied.

Its file `addresses.json` names the ports, which stay the same from one run to the next, and tells a
second `processor dev` where the servers of the first one are. A lock on its pidfile, not its
contents, says that they run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from processor.embedded.server import HOST, free_port
from processor.errors import AlreadyRunning, ConfigError
from processor.service.pidfile import Pidfile

NAME = ".processor"
DATABASE = "app"
#: Where the data stands if PostgreSQL's user cannot enter the project's directory.
_REACHABLE = Path("/var/tmp")
_ADDRESSES, _PIDFILE, _IGNORE = "addresses.json", "pid", ".gitignore"
_SERVERS = ("redis", "postgres")
_OURS = frozenset({_ADDRESSES, _PIDFILE, *_SERVERS})


@dataclass(frozen=True, slots=True)
class Addresses:
    """The ports of both servers on the loopback interface."""

    redis_port: int
    postgres_port: int

    @property
    def redis(self) -> str:
        """The URL of Redis."""
        return f"redis://{HOST}:{self.redis_port}/0"

    @property
    def database(self) -> str:
        """The DSN of the database."""
        return f"postgresql://postgres@{HOST}:{self.postgres_port}/{DATABASE}"


class Home:
    """One directory `.processor`; `with home:` takes it for this process."""

    def __init__(self, project: Path) -> None:
        self.path = project / NAME
        self._pidfile = Pidfile(self.path / _PIDFILE)

    def user(self) -> int | None:
        """The pid of the process that runs the servers; None if none does. Raises ConfigError."""
        return self._pidfile.running() if self.path.is_dir() else None

    def __enter__(self) -> Home:
        """Create the directory if it is missing. Raises AlreadyRunning and ConfigError."""
        self._refuse_foreign()
        _create(self.path)
        (self.path / _IGNORE).write_text("*\n")
        try:
            self._pidfile.__enter__()
        except AlreadyRunning:
            raise AlreadyRunning(
                f"the servers in {self.path} are already running (pid {self.user()})",
                hint="run a command with them: processor dev -- COMMAND",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._pidfile.__exit__()

    def empty(self) -> None:
        """Remove all data. Raises AlreadyRunning while the servers run, and ConfigError."""
        self._refuse_foreign()
        if pid := self.user():
            raise AlreadyRunning(f"the servers in {self.path} are running (pid {pid})",
                                 hint="stop that `processor dev` first")
        for server in _SERVERS:
            shutil.rmtree(self.path / server, ignore_errors=True)

    def _refuse_foreign(self) -> None:
        """Refuse a directory of this name that is not ours, before anything in it changes."""
        if not self.path.exists():
            return
        if not self.path.is_dir() or _OURS.isdisjoint(os.listdir(self.path) or _OURS):
            raise ConfigError(f"{self.path} was not created by `processor dev`",
                              hint="move it, or start `processor dev` in another directory")

    def addresses(self) -> Addresses:
        """Where the running servers listen. Raises ConfigError if the file is damaged."""
        try:
            return Addresses(**json.loads((self.path / _ADDRESSES).read_text()))
        except (OSError, ValueError, TypeError):
            raise ConfigError(f"{self.path / _ADDRESSES} cannot be read",
                              hint="stop `processor dev` and start it again") from None

    def choose_addresses(self) -> Addresses:
        """The ports of the previous run, where they are still free; they are written down."""
        try:
            previous = self.addresses()
        except ConfigError:
            previous = Addresses(0, 0)
        chosen = Addresses(_port(previous.redis_port), _port(previous.postgres_port))
        (self.path / _ADDRESSES).write_text(json.dumps(asdict(chosen)) + "\n")
        return chosen


def _port(previous: int) -> int:
    if previous:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, previous))
                return previous
            except OSError:
                pass
    return free_port()


def _create(path: Path) -> None:
    """Create the directory: for root, where PostgreSQL's user can enter it.

    PostgreSQL does not run as root. The user nobody, who runs it then, can enter no directory below
    one that is closed to others, such as /root: the data then stands elsewhere, behind a link.
    """
    if path.is_dir():
        return
    if path.is_symlink():
        path.unlink()  # what it led to is gone
    if os.geteuid() == 0 and not _open_to_all(path.parent.resolve()):
        digest = hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()
        made = _REACHABLE / f"processor-dev-{digest[:16]}"
        # It is left of a directory that was removed, or of another user.
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o755)
        path.symlink_to(made)
        return
    path.mkdir(mode=0o755)


def _open_to_all(directory: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (directory, *directory.parents))
