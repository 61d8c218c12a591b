"""The command line under test: called in this process for its output, or started as a program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver
import yaml

from processor.admin import redis_acl
from processor.cli.main import main
from processor.config import loader
from processor.producer import submit
from processor.transaction import statements
from processor.transaction.builder import Transaction
from tests.harness.process import ROOT
from tests.harness.site import Site
from tests.harness.wait import wait_until

UNKNOWN = "01a20104-0000-7000-8000-000000000000"


def line(n: int, **options: Any) -> str:
    """Return a transaction that writes to the tape, as a line of JSON."""
    values = {"op": "insert", "table": "tape", "values": {"n": n}}
    return json.dumps({"operations": [values]} | options)


def lines(*numbers: int, **options: Any) -> str:
    return "".join(line(n, **options) + "\n" for n in numbers)


POISON = {"id": 7, "balance": "secret-canary"}


def poison(site: Site, count: int = 1, **options: Any) -> list[str]:
    """Submit transactions that die of their values, wait for the dead letters, return the ids."""
    dying = [Transaction(**options).insert("account", POISON) for _ in range(count)]
    already = len(site.dead())
    site.submit(*dying)
    wait_until(lambda: len(site.dead()) == already + count, message=lambda: site.tale())
    return [each.id for each in dying]


def as_user(url: str, part: str) -> str:
    """Create the printed users on this server; return the URL for one of them."""
    with redis_driver.Redis.from_url(url) as client:
        release = int(client.info("server")["redis_version"].partition(".")[0])
        for each in redis_acl.lines("processor", url, release):
            client.execute_command("ACL", "SETUSER", *each.split()[1:])
    return url.replace("redis://", f"redis://processor-{part}:CHANGE-ME@")


@dataclass(frozen=True)
class Role:
    """A PostgreSQL role that can log in and has no privilege until one is granted."""

    name: str
    dsn: str


@pytest.fixture
def lowly(site: Site) -> Iterator[Role]:
    """A role without privileges on the site's database."""
    name = f"lowly_{os.getpid()}"
    site.execute(f"create role {name} login")
    yield Role(name, as_role(site.dsn, name))
    site.execute(f"drop owned by {name}; drop role {name}")


def as_role(dsn: str, name: str) -> str:
    """Return the DSN of the same database for another role."""
    if "://" in dsn:
        return re.sub(r"//[^@/]*@", f"//{name}@", dsn)
    return f"{dsn} user={name}"


@dataclass(frozen=True)
class Said:
    """The result of a call of the command line."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The output of --json."""
        return [json.loads(line) for line in self.lines]

    @property
    def error(self) -> str:
        """The only line on stderr."""
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("processor: "), self.err
        return self.err.removeprefix("processor: ").rstrip("\n")


class Cli:
    """Calls `main` in this process, with a settings file once `use` was called."""

    def __init__(self, capsys: pytest.CaptureFixture[str], path: Path) -> None:
        self._capsys, self._path = capsys, path
        self.head: list[str] = []

    def use(self, settings: Mapping[str, Any]) -> Cli:
        """Use these settings in all later calls."""
        self._path.write_text(yaml.safe_dump(dict(settings)))
        self.head = ["-c", str(self._path)]
        return self

    def __call__(self, *arguments: str, stdin: str | bytes = b"") -> Said:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(content))
        self._capsys.readouterr()
        try:
            code = main([*self.head, *arguments])
        finally:
            sys.stdin = before
        captured = self._capsys.readouterr()
        return Said(code, captured.out, captured.err)

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the records of a call that must succeed."""
        said = self(*arguments, "--json")
        assert said.code == 0, said
        return said.records


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    """`cli(*arguments)`: call the command line; without `use`, with the default settings."""
    monkeypatch.setattr(loader, "_configured", None)
    monkeypatch.setattr(submit._writer, "_made", None)
    yield Cli(capsys, tmp_path / "cli.yml")
    submit._writer.close()
    statements._statements.clear()


@pytest.fixture
def at_site(cli: Cli, site: Site) -> Cli:
    """The command line with the settings of `site`."""
    return cli.use(site.mapping)


@pytest.fixture
def dead_site(at_site: Cli, site: Site) -> Site:
    """A site with a running processor, for tests that make dead letters."""
    site.start()
    return site


Program = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """`program(*arguments, **options of Popen)`: the command line as a program of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        for name in ("stdin", "stdout", "stderr"):
            options.setdefault(name, subprocess.PIPE)
        # As in an operator's shell: output into a pipe is buffered until it is flushed.
        options["env"] = dict(options.get("env") or os.environ)
        options["env"].pop("PYTHONUNBUFFERED", None)
        command = [sys.executable, "-m", "processor", *arguments]
        process = subprocess.Popen(command, cwd=options.pop("cwd", ROOT), **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def on_terminal(
    *arguments: str, stdout: int | None = None, stderr: int | None = None, **environ: str
) -> str:
    """What the command line prints to a terminal; `stdout` or `stderr` may go elsewhere."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "processor", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=there if stdout is None else stdout, stderr=there if stderr is None else stderr,
        env=os.environ | environ,
    )
    os.close(there)
    printed = b""
    with contextlib.suppress(OSError):  # The program has closed the terminal.
        while chunk := os.read(here, 65536):
            printed += chunk
    os.close(here)
    assert process.wait(20) == 0
    return printed.decode()
