"""What the command line of a benchmark can say; `note` for what people read."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """None: the benchmark's own default."""

    n: int | None = None
    rounds: int | None = None
    batch: int | None = None
    profile: bool = False

    def many(self, default: int) -> int:
        return self.n or default

    def turns(self, default: int) -> int:
        return self.rounds or default


def note(text: str) -> None:
    """Words for people go to stderr, the line of JSON alone to stdout."""
    print(text, file=sys.stderr, flush=True)
