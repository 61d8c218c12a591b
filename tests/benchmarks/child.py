"""Starts processors as separate processes: `program`, or the real `processor run`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.harness.process import ROOT, Process


class Child(Process):
    """One process; its settings and its output are files in `directory`."""

    def __init__(self, directory: Path, settings: dict[str, Any], *flags: str) -> None:
        self._start(directory, settings, "-m", "tests.benchmarks.program", "{config}", *flags)

    def _start(self, directory: Path, settings: dict[str, Any], *arguments: str) -> None:
        stem = f"child-{time.monotonic_ns()}"
        config = directory / f"{stem}.json"
        config.write_text(json.dumps(settings))
        command = [sys.executable, *(each.format(config=config) for each in arguments)]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        Process.__init__(self, command, directory / f"{stem}.out", environ, ROOT)

    @property
    def commits(self) -> list[float]:
        """Times of its commits so far (monotonic), if it was started to print them."""
        return [float(line.split()[1]) for line in self.lines if line.startswith("commit ")]


class Service(Child):
    """`processor run`, as systemd starts it."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self._start(directory, settings, "-m", "processor", "run", "-c", "{config}")
