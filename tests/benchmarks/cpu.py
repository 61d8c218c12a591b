"""CPU time that another process has used or waited for, as the kernel counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """Seconds on a core, and seconds in which the process was runnable without a core."""

    used: float = 0.0
    waited: float = 0.0


def account(pid: int) -> Account:
    """Return the account of the main thread of `pid`; zeros if the kernel has none."""
    try:
        used, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return Account()
    return Account(int(used) / 1e9, int(waited) / 1e9)
