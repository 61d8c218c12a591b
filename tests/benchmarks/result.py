"""What a benchmark found: a figure beside its limit, printed as one line of JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Result:
    """`limit` was measured in the same run; `ratio` is figure / limit."""

    figure: float
    unit: str
    limit: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.figure / self.limit if self.limit else float("nan")

    def line(self) -> str:
        """One line of JSON."""
        shown = {"figure": rounded(self.figure), "unit": self.unit, "limit": rounded(self.limit),
                 "ratio": rounded(self.ratio)}  # fmt: skip
        load = [round(each, 2) for each in os.getloadavg()]
        return json.dumps(shown | self.extra | {"load": load})


def rounded(value: float) -> float:
    """Four figures: more would claim what a shared machine cannot tell."""
    return float(f"{value:.4g}")


def spread(values: Sequence[float]) -> str:
    """How far the rounds lay from their median."""
    middle = median(values)
    if not middle:
        return "-"
    return f"{100 * (min(values) / middle - 1):+.0f}..{100 * (max(values) / middle - 1):+.0f} %"


def compared(figures: Sequence[float], limits: Sequence[float], unit: str, **extra: Any) -> Result:
    """The medians of rounds that took turns."""
    more = {"spread": spread(figures), "limit_spread": spread(limits), "rounds": len(figures)}
    return Result(median(figures), unit, median(limits), more | extra)
