"""A Python program that runs beside the demo, with its log; `stage` starts them.

Each program runs in its own session, so that Ctrl-C on the terminal reaches only the demo, which
then ends the programs in order.
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
        # So that the program finds the package even if it is not installed, whatever its directory.
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *module], stdin=subprocess.PIPE, stdout=log, stderr=log,
                cwd=directory, env={**os.environ, "PYTHONPATH": path, **(environ or {})},
                start_new_session=True,
            )  # fmt: skip

    def must_run(self) -> None:
        """Raises ProcessorError if it has exited unexpectedly."""
        if self._process.poll() is not None:
            raise self._failure(f"exited unexpectedly with code {self._process.returncode}")

    def end_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def wait(self, longer: float = 0.0) -> None:
        """Wait until it has exited. Raises ProcessorError if it takes too long, or fails.

    `longer` is added to the usual patience, in seconds.
    """
        patience = _PATIENCE + longer
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not exit within {patience:g} s") from None
        finally:
            self.end_input()
        if code:
            raise self._failure(f"exited with code {code}")

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
        self.end_input()

    def _failure(self, problem: str) -> ProcessorError:
        tail = self._log.read_text(errors="replace").splitlines()[-_TAIL:]
        return ProcessorError("\n".join([f"{self.name} {problem}; its log ends with:", *tail]))
