"""Python programs started by a test, with the project on their path; none outlives the test.

A variable in the environment identifies every descendant, including daemons that left the session,
so that exactly the processes of the test are ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.embedded import guardian
from tests.harness.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
MARK = "PROCESSOR_TEST"
# A process that receives a signal needs a moment; a gunicorn worker checks its arbiter each second.
GRACE = 3.0


class Process:
    """A program whose output goes to a file: reading never blocks, and no pipe fills up."""

    def __init__(
        self, command: list[str], output: Path, environ: dict[str, str], cwd: Path
    ) -> None:
        self._output = output
        with output.open("wb") as file:
            self._popen = subprocess.Popen(
                command, env=environ, cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._popen.pid

    @property
    def output(self) -> str:
        """All output so far, stdout and stderr together."""
        return self._output.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The whole lines of the output so far.

        `print` may write a line in pieces: the first piece was once taken for the line.
        """
        return self.output.rpartition("\n")[0].splitlines()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    def expect(self, text: str, timeout: float = 10.0) -> str:
        """Wait for `text` in the output; return its line. Fails if the program ends before."""

        def said() -> str | None:
            ended = not self.running
            found = next((line for line in self.lines if text in line), None)
            if found is None and ended:
                raise AssertionError(f"ended ({self.returncode}) without {text!r}:\n{self.output}")
            return found

        return wait_until(said, timeout, lambda: f"{text!r} in the output:\n{self.output}") or ""

    def wait(self, timeout: float = 10.0) -> int:
        """Wait until the program ends; return its exit code."""
        wait_until(lambda: not self.running, timeout, lambda: f"end of:\n{self.output}")
        return self._popen.wait()

    def send(self, signum: int) -> None:
        self._popen.send_signal(signum)

    def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self, timeout: float = 10.0) -> int:
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)


class Spawn:
    """Starts programs for one test: Python code, or `-m module`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = uuid.uuid4().hex
        self._started: list[Process] = []

    def __call__(
        self, code: str, *arguments: str, cwd: Path | None = None, **environ: str
    ) -> Process:
        """`spawn(code, *argv)`; `spawn("-m", "processor", "run")`. Keywords are its environment."""
        head = [code] if code.startswith("-") else ["-c", textwrap.dedent(code)]
        return self.command([sys.executable, *head, *arguments], cwd=cwd, **environ)

    def command(self, command: list[str], *, cwd: Path | None = None, **environ: str) -> Process:
        """Start any program."""
        output = self._directory / f"output-{len(self._started)}"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        base = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", MARK: self._mark}
        # Hundreds are started; compiling the project each time takes longer than running it.
        base.pop("PYTHONDONTWRITEBYTECODE", None)
        process = Process(command, output, base | environ, cwd or self._directory)
        self._started.append(process)
        return process

    def left(self) -> list[int]:
        """Return the pids of all processes, direct or not, that this test started and that live."""
        wanted = f"{MARK}={self._mark}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                if wanted in _environ(pid)]  # fmt: skip

    def end(self) -> None:
        for process in self._started:
            process.kill()
        try:
            wait_until(lambda: not self.left(), GRACE)
        except AssertionError:
            guardian.send(self.left(), signal.SIGKILL)
            wait_until(lambda: not self.left(), GRACE, lambda: f"still running: {self.left()}")


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Starts Python programs; see `Spawn` and `Process`."""
    spawn = Spawn(tmp_path)
    yield spawn
    spawn.end()
