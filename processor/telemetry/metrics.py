"""Counters of this process, and the list of all metrics; no I/O.

Every package counts here, and `web` exposes the counters. Gauges are not stored: `web.gauges` reads
them from the state when it is asked, so that what is gone is exported no more.

A counter is an entry of a plain dict, without a lock. The drain thread is the only writer of nearly
all of them, and an increment lost in a race between two submits only blurs a statistic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]


class Metric(NamedTuple):
    """`kind` is counter or gauge. `known` are the values that a counter's label always has."""

    kind: str
    meaning: str
    label: str = ""
    known: tuple[str, ...] = ()


#: Every metric by name. A counter is exported with the suffix `_total`.
DECLARED: dict[str, Metric] = {
    "submitted": Metric("counter", "transactions this process put into the buffer"),
    "refused": Metric("counter", "transactions refused because the buffer or Redis was full"),
    "committed": Metric("counter", "transactions whose effect this process committed"),
    "known": Metric("counter", "transactions already applied: found in the ledger, no effect"),
    "retried": Metric("counter", "failed attempts that will be retried"),
    "dead": Metric(
        "counter", "transactions that became dead letters", "sqlstate_class",
        ("22", "23", "42", "P0", "PR", "XX", "other"),
    ),
    "blocked": Metric("counter", "transactions parked behind an earlier one with the same key"),
    "batches": Metric("counter", "batches committed"),
    "isolated": Metric("counter", "batches in which a poison transaction was isolated"),
    "passes": Metric("counter", "passes of the drain thread"),
    "rings": Metric("counter", "wake-ups by a submit in another process"),
    "verdicts": Metric(
        "counter", "failures by verdict", "verdict",
        ("contention", "outage", "applied", "fenced", "unknown", "poison", "stale plan", "defect"),
    ),
    "outages": Metric("counter", "outages detected"),
    "unaccepted": Metric("counter", "pending writes removed because they were never accepted"),
    "takeovers": Metric("counter", "times this processor became the owner of a lane"),
    "fenced": Metric("counter", "batches rejected because another processor owns the lane"),
    "lost": Metric("counter", "commits lost by a failover"),
    "status": Metric("gauge", "1 for the current status of the processor, 0 for the others"),
    "redis_up": Metric("gauge", "1 if Redis answers, else 0"),
    "postgres_up": Metric("gauge", "1 if PostgreSQL accepts the processor, else 0"),
    "depth": Metric("gauge", "entries in the stream of the lane"),
    "oldest_age_seconds": Metric(
        "gauge", "age of the oldest entry in the stream; without scheduled and parked ones"
    ),
    "scheduled": Metric("gauge", "transactions of the lane that are not due yet"),
    "parked": Metric("gauge", "transactions to be retried, or that wait behind their key"),
    "parked_oldest_age_seconds": Metric("gauge", "age of the oldest parked transaction"),
    "lost_entries": Metric("gauge", "entries that Redis lost with a stream, until acknowledged"),
    "held": Metric("gauge", "transactions that wait because all of their kind fail"),
    "owner": Metric("gauge", "1 if this processor owns the lane, else 0"),
    "dead_letters": Metric("gauge", "dead letters that await a decision"),
    "replica_lag_seconds": Metric(
        "gauge", "for how long the replica has lacked a commit of this processor"
    ),
    "replica_lost": Metric("gauge", "1 if the replica is declared lost, else 0"),
    "last_pass_timestamp_seconds": Metric("gauge", "Unix time of the last completed pass"),
}  # fmt: skip

_values: dict[tuple[str, Labels], float] = {}


def count(name: str, by: float = 1, **labels: str) -> None:
    """Add to a counter. Raises KeyError for a metric that is not in DECLARED."""
    key = (_declared(name), tuple(sorted(labels.items())) if labels else ())
    _values[key] = _values.get(key, 0.0) + by


def value(name: str, **labels: str) -> float:
    """The value of a counter; zero if it was never counted."""
    return _values.get((_declared(name), tuple(sorted(labels.items()))), 0.0)


def total(name: str) -> float:
    """The sum of a counter over all its labels."""
    return sum(number for (counted, _), number in list(_values.items()) if counted == name)


def snapshot() -> Iterator[tuple[str, Labels, float]]:
    """All counters as (name, labels, value), in a stable order; zeros from the start."""
    found = _zeros() | _values
    for (name, labels), number in sorted(found.items()):
        yield name, labels, number


def _zeros() -> dict[tuple[str, Labels], float]:
    counters = {name: each for name, each in DECLARED.items() if each.kind == "counter"}
    zeros: dict[tuple[str, Labels], float] = {
        (name, ()): 0.0 for name, each in counters.items() if not each.label
    }
    for name, each in counters.items():
        zeros |= {(name, ((each.label, known),)): 0.0 for known in each.known}
    return zeros


def forget() -> None:
    """Drop all values: a forked child does not continue those of its parent."""
    _values.clear()


def _declared(name: str) -> str:
    DECLARED[name]
    return name
