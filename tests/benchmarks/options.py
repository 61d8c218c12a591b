"""Options of the command line of a benchmark; `note` prints progress for people."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """None means the default of the benchmark."""

    n: int | None = None
    rounds: int | None = None
    batch: int | None = None
    profile: bool = False

    def many(self, default: int) -> int:
        return self.n or default

    def turns(self, default: int) -> int:
        return self.rounds or default


def note(text: str) -> None:
    """Print to stderr; only the line of JSON goes to stdout."""
    print(text, file=sys.stderr, flush=True)
