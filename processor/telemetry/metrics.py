"""Counters and gauges of this process; no I/O. Every package counts here, `web` exposes them.

A counter is an entry of a plain dict, without a lock. The drain thread is the only writer of nearly
all of them, and an increment lost in a race between two submits only blurs a statistic.
"""

from __future__ import annotations

from collections.abc import Iterator

Labels = tuple[tuple[str, str], ...]

#: Every metric by name, with its kind and its help text.
DECLARED: dict[str, tuple[str, str]] = {
    "submitted": ("counter", "transactions this process put into the buffer"),
    "refused": ("counter", "transactions refused because the buffer or Redis was full"),
    "committed": ("counter", "transactions whose effect this process committed"),
    "known": ("counter", "transactions already applied: found in the ledger, no effect"),
    "retried": ("counter", "failed attempts that will be retried"),
    "dead": ("counter", "transactions that became dead letters"),
    "parked": ("counter", "transactions parked behind an earlier one with the same key"),
    "batches": ("counter", "batches committed"),
    "isolated": ("counter", "batches in which a poison transaction was isolated"),
    "passes": ("counter", "passes of the drain thread"),
    "rings": ("counter", "wake-ups by a submit in another process"),
    "verdicts": ("counter", "failures by verdict"),
    "outages": ("counter", "outages detected"),
    "takeovers": ("counter", "times this processor became the owner of a lane"),
    "fenced": ("counter", "batches rejected because another processor owns the lane"),
    "depth": ("gauge", "entries in the lane"),
    "oldest_age": ("gauge", "age of the oldest entry in the lane, in seconds"),
    "lost": ("counter", "commits lost by a failover"),
    "held": ("gauge", "transactions that wait because all of their kind fail"),
    "owner": ("gauge", "1 if this processor owns the lane, else 0"),
    "dead_letters": ("gauge", "dead letters that await a decision"),
    "replica_lag": ("gauge", "seconds for which the replica has lacked a commit of this processor"),
    "replica_lost": ("gauge", "1 if the replica is declared lost, else 0"),
    "last_pass": ("gauge", "time of the last completed pass, in Unix seconds"),
}

_values: dict[tuple[str, Labels], float] = {}


def count(name: str, by: float = 1, **labels: str) -> None:
    """Add to a counter. Raises KeyError for a metric that is not in DECLARED."""
    key = (_declared(name), tuple(sorted(labels.items())) if labels else ())
    _values[key] = _values.get(key, 0.0) + by


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge. Raises KeyError for a metric that is not in DECLARED."""
    _values[_declared(name), tuple(sorted(labels.items()))] = value


def drop(name: str, **labels: str) -> None:
    """Remove a metric with these labels: what it measured is gone."""
    _values.pop((_declared(name), tuple(sorted(labels.items()))), None)


def value(name: str, **labels: str) -> float:
    """The value of a metric; zero if it was never set."""
    return _values.get((_declared(name), tuple(sorted(labels.items()))), 0.0)


def snapshot() -> Iterator[tuple[str, Labels, float]]:
    """All metrics of this process as (name, labels, value), in a stable order."""
    for (name, labels), number in sorted(_values.items()):
        yield name, labels, number


def forget() -> None:
    """Drop all values: a forked child does not continue those of its parent."""
    _values.clear()


def _declared(name: str) -> str:
    DECLARED[name]
    return name
