"""A Python program that the demo runs beside itself, with its log; `stage` starts them.

Each has a session of its own, so that Ctrl-C on the terminal is for the demo alone, which then ends
them in order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from processor.errors import ProcessorError

_PATIENCE = 15.0
_TAIL = 10


class Child:
    """`python -m MODULE ...` in a directory. Its standard input ends when `end_input` is called."""

    def __init__(
        self, name: str, directory: Path, *module: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        # Also where the package is not installed, and not from the directory that it works in.
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *module], stdin=subprocess.PIPE, stdout=log, stderr=log,
                cwd=directory, env={**os.environ, "PYTHONPATH": path, **(environ or {})},
                start_new_session=True,
            )  # fmt: skip

    def must_run(self) -> None:
        """Raises ProcessorError if it has ended by itself."""
        if self._process.poll() is not None:
            raise self._failure(f"ended by itself with {self._process.returncode}")

    def end_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def wait(self, longer: float = 0.0) -> None:
        """Wait until it has ended. Raises ProcessorError if that takes too long, or goes wrong."""
        try:
            code = self._process.wait(_PATIENCE + longer)
        except subprocess.TimeoutExpired:
            raise self._failure("did not end when it was told to") from None
        finally:
            self.end_input()
        if code:
            raise self._failure(f"ended with {code}")

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self.end_input()

    def tail(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL:]
        return "\n".join([f"the log of {self.name} ends with:", *lines])

    def _failure(self, problem: str) -> ProcessorError:
        return ProcessorError(f"{self.name} {problem}; {self.tail()}")
