"""The suite's plug-ins, one for each thing outside: servers, network, processes."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

pytest_plugins = (
    "tests.harness.servers",
    "tests.harness.proxy",
    "tests.harness.process",
    "tests.harness.tls",
    "tests.harness.site",
    "tests.harness.replicas",
    "tests.harness.failover",
    "tests.harness.pooler",
    "tests.harness.pgbouncer",
    "tests.harness.service",
    "tests.harness.cli",
)

# Clusters and databases are made by the hundred, of 300 files each: half of the time of a run on a
# disk is spent looking for free inodes.
_MEMORY = Path("/dev/shm")
_ENOUGH = 4 << 30


def _is_fit(directory: Path) -> bool:
    """Whether servers' files have room there, and their programs may be run."""
    return (
        os.access(directory, os.W_OK)
        and not os.statvfs(directory).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(directory).free > _ENOUGH
    )


if "TMPDIR" not in os.environ and _is_fit(_MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

# A run in the background of a script ignores SIGINT, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
