"""Starts `program`, a processor in a process of its own, and reads what it says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.fix_process import ROOT, Process


class Child(Process):
    """One such process; its configuration and its output lie in `directory`."""

    def __init__(self, directory: Path, settings: dict[str, Any], *flags: str) -> None:
        stem = f"child-{time.monotonic_ns()}"
        config = directory / f"{stem}.json"
        config.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "tests.benchmarks.program", str(config), *flags]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        super().__init__(command, directory / f"{stem}.out", environ, ROOT)

    @property
    def commits(self) -> list[float]:
        """Times of its commits so far (monotonic)."""
        return [float(line.split()[1]) for line in self.lines if line.startswith("commit ")]
