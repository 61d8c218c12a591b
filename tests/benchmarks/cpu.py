"""CPU time that another process has used or was kept from, by the kernel's own account."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """Seconds on a core, and seconds in which it could have run and there was none."""

    used: float = 0.0
    waited: float = 0.0


def account(pid: int) -> Account:
    """The main thread of `pid`; zeros where the kernel does not tell."""
    try:
        used, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return Account()
    return Account(int(used) / 1e9, int(waited) / 1e9)
