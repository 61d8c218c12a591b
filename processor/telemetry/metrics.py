"""Counters and gauges of this process; no I/O. Every floor counts here, `web` exposes.

A counter is a plain dict entry: the drain thread is the only writer of nearly all of them, and an
increment lost to a race between two producers of one process would only blur a statistic.
"""

from __future__ import annotations

from collections.abc import Iterator

Labels = tuple[tuple[str, str], ...]

#: Name of each figure, its kind and its meaning; nothing else can be counted.
FIGURES: dict[str, tuple[str, str]] = {
    "submitted": ("counter", "transactions accepted into the buffer by this process"),
    "refused": ("counter", "transactions refused because the buffer was full"),
    "committed": ("counter", "transactions whose effect this process committed"),
    "known": ("counter", "transactions found in the ledger already, settled without effect"),
    "retried": ("counter", "attempts that failed and will be made again"),
    "dead": ("counter", "transactions that became dead letters"),
    "parked": ("counter", "transactions held back behind an earlier one of the same key"),
    "batches": ("counter", "batches committed"),
    "isolated": ("counter", "batches in which poison was isolated"),
    "passes": ("counter", "passes of the drain"),
    "rings": ("counter", "wake-ups by the doorbell"),
    "verdicts": ("counter", "failures by verdict"),
    "outages": ("counter", "times the gate was shut"),
    "takeovers": ("counter", "lanes acquired"),
    "fenced": ("counter", "batches refused because another processor owns the lane"),
    "depth": ("gauge", "entries in the buffer"),
    "oldest_age": ("gauge", "age of the oldest entry in seconds"),
    "lost": ("counter", "commits that a failover left behind"),
    "owner": ("gauge", "1 if this processor owns the lane"),
    "dead_letters": ("gauge", "dead letters that wait for a decision"),
    "replica_lag": ("gauge", "seconds for which the replica owes a commit of this processor"),
    "replica_lost": ("gauge", "1 if nothing waits for the replica any more"),
    "last_pass": ("gauge", "time of the last completed pass, Unix seconds"),
}

_values: dict[tuple[str, Labels], float] = {}


def count(name: str, by: float = 1, **labels: str) -> None:
    """Add to a counter. Raises KeyError for a figure that is not declared in FIGURES."""
    key = (_declared(name), tuple(sorted(labels.items())))
    _values[key] = _values.get(key, 0.0) + by


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge. Raises KeyError for a figure that is not declared in FIGURES."""
    _values[_declared(name), tuple(sorted(labels.items()))] = value


def value(name: str, **labels: str) -> float:
    """What a figure stands at; zero if it was never counted."""
    return _values.get((_declared(name), tuple(sorted(labels.items()))), 0.0)


def snapshot() -> Iterator[tuple[str, Labels, float]]:
    """All figures of this process as (name, labels, value), in a stable order."""
    for (name, labels), number in sorted(_values.items()):
        yield name, labels, number


def forget() -> None:
    """Drop all values: in a forked child the parent's figures are not its own."""
    _values.clear()


def _declared(name: str) -> str:
    FIGURES[name]
    return name
