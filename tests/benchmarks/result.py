"""The result of a benchmark: a figure beside its limit, printed as one line of JSON."""

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
        """Return the result as one line of JSON."""
        shown = {"figure": rounded(self.figure), "unit": self.unit, "limit": rounded(self.limit),
                 "ratio": rounded(self.ratio)}  # fmt: skip
        load = [round(each, 2) for each in os.getloadavg()]
        return json.dumps(shown | self.extra | {"load": load})


def rounded(value: float) -> float:
    """Round to four digits: a shared machine does not justify more."""
    return float(f"{value:.4g}")


def spread(values: Sequence[float]) -> str:
    """Return how far the rounds are from their median."""
    middle = median(values)
    if not middle:
        return "-"
    return f"{100 * (min(values) / middle - 1):+.0f}..{100 * (max(values) / middle - 1):+.0f} %"


@dataclass(frozen=True)
class Run:
    """The measurements of one drain.

    `client` and `server` are CPU microseconds per transaction of the drain thread and of its
    PostgreSQL backend. `waited` is the share of the time in which the backend was runnable without
    a core, because other processes used it.
    """

    rate: float
    client: float
    server: float
    waited: float


def compared(figures: Sequence[Run], limits: Sequence[Run], **extra: Any) -> Result:
    """Return the median rates of runs that took turns; `best_ratio` compares the best of each."""
    rates, most = [each.rate for each in figures], [each.rate for each in limits]
    more = {
        "best_ratio": rounded(max(rates) / max(most)),
        "spread": spread(rates), "limit_spread": spread(most), "rounds": len(rates),
        "cpu_us": _cpu(figures), "limit_cpu_us": _cpu(limits),
    }  # fmt: skip
    return Result(median(rates), "tx/s", median(most), more | extra)


def _cpu(runs: Sequence[Run]) -> dict[str, float]:
    return {
        "client": rounded(median(each.client for each in runs)),
        "backend": rounded(median(each.server for each in runs)),
        "waited": rounded(median(each.waited for each in runs)),
    }
