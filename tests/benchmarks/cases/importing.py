"""`import`: what `import processor` adds to the start of a program.

Names are loaded when they are used; `all_names` includes the use of every public name. The limit is
the time to load the two drivers, which the first submit or start needs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from tests.benchmarks.options import Options
from tests.benchmarks.result import Result, rounded, spread
from tests.harness.process import ROOT

BARE = "pass"
PLAIN = "import processor"
NAMES = "import processor; [getattr(processor, name) for name in processor.__all__]"
DRIVERS = "import psycopg2, redis"


def run(options: Options) -> Result:
    """Return milliseconds, the median of fresh interpreters."""
    codes = (BARE, PLAIN, NAMES, DRIVERS)
    times: dict[str, list[float]] = {code: [] for code in codes}
    for code in codes:
        _started(code)
    for _ in range(options.many(25)):
        for code in codes:
            times[code].append(_started(code))
    bare, plain, names, drivers = (1e3 * median(times[code]) for code in codes)
    if options.profile:
        subprocess.run([sys.executable, "-X", "importtime", "-c", NAMES], cwd=ROOT, check=True)
    return Result(
        plain - bare, "ms", drivers - bare,
        {"all_names": rounded(names - bare), "all_names_ratio": rounded((names - bare)
         / (drivers - bare)), "interpreter": rounded(bare), "spread": spread(times[PLAIN])},
    )  # fmt: skip


def _started(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - begun
