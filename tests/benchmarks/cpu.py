"""CPU time that another process has used, from the kernel's own account in nanoseconds."""

from __future__ import annotations

from pathlib import Path


def seconds(pid: int) -> float:
    """CPU seconds of the main thread of `pid`; zero where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
