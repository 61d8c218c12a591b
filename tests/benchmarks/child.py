"""A processor in a process of its own, as `processor run` is one but for the service around it.

`python -m tests.benchmarks.child CONFIG [--commits]` drains until SIGTERM, or until nobody waits
for it any more; with --commits it prints the time of each commit. `Child` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import processor
from tests.benchmarks.commits import note_commits
from tests.fix_process import ROOT, Process


class Child(Process):
    """One such process; CONFIG and output lie in `directory`."""

    def __init__(self, directory: Path, settings: dict[str, Any], *flags: str) -> None:
        stem = f"child-{time.monotonic_ns()}"
        config = directory / f"{stem}.json"
        config.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "tests.benchmarks.child", str(config), *flags]
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        super().__init__(command, directory / f"{stem}.out", environ, ROOT)

    @property
    def commits(self) -> list[float]:
        """Times of its commits so far (monotonic)."""
        return [float(line.split()[1]) for line in self.lines if line.startswith("commit ")]


def main() -> None:
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    processor.configure(json.loads(Path(sys.argv[1]).read_text()))
    if "--commits" in sys.argv:
        note_commits(lambda at: print(f"commit {at:.6f}", flush=True))
    processor.start()
    print("up", flush=True)
    while os.getppid() == parent:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
