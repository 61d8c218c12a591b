"""A processor as a separate process: `processor run` without the service around it.

`python -m tests.benchmarks.program CONFIG [--commits]` drains until SIGTERM, or until its parent
has ended; with --commits it prints the time of each commit. It loads only what it needs, since
`recovery` measures its start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import processor
from tests.benchmarks.commits import note_commits


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
