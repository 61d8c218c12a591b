"""An embedded PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from processor.embedded import binaries
from processor.embedded.server import HOST, Mode, Server, Setting, Settings
from processor.errors import Unavailable

SUPERUSER = "postgres"
INCLUDED = "server.conf"
PROGRAM_TIMEOUT = 120.0
STATUS_LINE = 7


class PostgresServer(Server):
    """Listens on 127.0.0.1 and a unix socket; user `postgres`, no password.

    `settings` are lines of postgresql.conf; all others have PostgreSQL's defaults (fsync is on).
    `copy_of`: a stopped server whose cluster is copied, much faster than initdb; both then have the
    same system identifier.
    """

    what = "PostgreSQL"
    stop_signals: ClassVar[Mapping[Mode, int]] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGINT,
        "immediate": signal.SIGQUIT,
    }

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        bin: binaries.Given = None,
        port: int | None = None,
        copy_of: PostgresServer | None = None,
        directory: Path | None = None,
    ) -> None:
        super().__init__(settings, port=port, directory=directory)
        given = bin or (copy_of.installed if copy_of else None)
        self.installed: Path = binaries.postgres_bin(given)
        self.bin = self.installed
        self._copy_of = copy_of
        self._reachable_in: Path | None = None

    @property
    def programs(self) -> set[str]:
        return {"postgres", "initdb", "pg_basebackup", "pg_ctl"}

    @property
    def version(self) -> str:
        return subprocess.run(
            [self.installed / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def dsn(self) -> str:
        return self.dsn_of("postgres")

    @property
    def socket_dsn(self) -> str:
        return self.dsn_of("postgres", host=str(self.sockets))

    def dsn_of(self, database: str, *, host: str = HOST, port: int | None = None) -> str:
        """The DSN of a database; `host` and `port` may be those of a proxy before the server."""
        name = quote(database, safe="")
        return f"postgresql://{SUPERUSER}@{quote(host, safe='')}:{port or self.port}/{name}"

    def prepare(self) -> Self:
        """Create the cluster without starting it, for instance as a template to copy."""
        self._make_reachable()
        if not self.data.exists():
            try:
                self._make_cluster()
            except BaseException:
                # The next start would use an incomplete cluster as if it were complete.
                shutil.rmtree(self.data, ignore_errors=True)
                raise
        return self

    def reload(self, settings: Settings | None = None) -> None:
        """Change settings of the running server that need no restart."""
        self.settings |= settings or {}
        self._write_settings()
        os.kill(self.pid, signal.SIGHUP)

    def _owner(self) -> tuple[int, int] | None:
        """The user nobody in place of root, as whom PostgreSQL refuses to run."""
        if os.geteuid() != 0:
            return None
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return 65534, 65534
        return nobody.pw_uid, nobody.pw_gid

    def _make_reachable(self) -> None:
        """Copy the programs if the server's user cannot run them, as in a venv below /root."""
        if self._reachable_in == self.directory:
            return
        self._reachable_in, self.bin = self.directory, self.installed
        if self._owner() and not all(map(self._may_run, binaries.POSTGRES_PROGRAMS)):
            home = self.installed.parent
            copy = self.directory / "programs" / home.parent.name / home.name
            self.bin = copy / self.installed.name
            shutil.rmtree(copy, ignore_errors=True)
            left_out = shutil.ignore_patterns("include", "doc", "man", "locale", "*.a")
            shutil.copytree(home, copy, ignore=left_out, symlinks=True)
            # A wheel has its shared libraries beside its package and finds them by a relative path.
            libraries = home.parent.with_name(home.parent.name + ".libs")
            if libraries.is_dir():
                beside = copy.parent.with_name(libraries.name)
                shutil.copytree(libraries, beside, dirs_exist_ok=True)

    def _may_run(self, program: str) -> bool:
        command: list[str | Path] = [self.installed / program, "--version"]
        context = self._context() | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            return subprocess.run(command, **context).returncode == 0
        except PermissionError:
            return False

    def _make_cluster(self) -> None:
        if self._copy_of is None:
            self._run("initdb", "-D", self.data, "-N", "-A", "trust", "-U", SUPERUSER,
                      "-E", "UTF8", "--locale=C")  # fmt: skip
        elif self._copy_of.running:
            raise Unavailable(
                "a running PostgreSQL server cannot be copied", hint="stop the template first"
            )
        else:
            self._run(Path("cp"), "-a", self._copy_of.prepare().data, self.data)
        self._include_settings()

    def _include_settings(self) -> None:
        config = self.data / "postgresql.conf"
        line = f"include_if_exists = '{INCLUDED}'\n"
        if line not in config.read_text():
            with config.open("a") as file:
                file.write(line)

    def _write_settings(self) -> None:
        own: dict[str, Setting] = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": str(self.sockets),
            "logging_collector": False,
            "log_destination": "stderr",
            # In files of the cluster: segments in /dev/shm would remain after a kill.
            "dynamic_shared_memory_type": "mmap",
        }
        (self.data / INCLUDED).write_text(conf(own | self.settings))

    def _prepare(self) -> list[str]:
        self.prepare()
        self._write_settings()
        # After a kill these contain a pid that another process may have by now; ours have ended.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.sockets / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)
        return [str(self.bin / "postgres"), "-D", str(self.data)]

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) > STATUS_LINE
            and lines[0] == str(self.pid)
            and lines[STATUS_LINE].strip() == "ready"
        )

    def _run(self, program: str | Path, *arguments: str | Path) -> None:
        """Run a program of PostgreSQL (or, as a path, any other) as the user of the server."""
        command = [self.bin / program if isinstance(program, str) else program, *arguments]
        with self.log.open("ab") as log:
            try:
                subprocess.run(command, check=True, timeout=PROGRAM_TIMEOUT,
                               stdout=log, stderr=log, **self._context())  # fmt: skip
            except subprocess.CalledProcessError as error:
                name = Path(command[0]).name
                raise self._failure(
                    f"could not be prepared: {name} exited with code {error.returncode}"
                ) from None
            except (OSError, subprocess.SubprocessError) as error:
                raise self._failure(f"could not be prepared: {error}") from None


def conf(settings: Mapping[str, Setting]) -> str:
    """Lines of postgresql.conf."""
    return "".join(f"{name} = {_value(value)}\n" for name, value in settings.items())


def _value(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
