"""The gauges of a processor, read from its state: the same record that /health shows.

What is not known has no gauge, since an old value looks like a current one; the gauges `redis_up`
and `postgres_up` say why.
"""

from __future__ import annotations

from collections.abc import Iterator

from processor.telemetry.metrics import Labels
from processor.telemetry.status import STATUSES, LaneState, Replica, State

Gauge = tuple[str, Labels, float | None]


def gauges(state: State) -> Iterator[tuple[str, Labels, float]]:
    """All gauges that have a value, as (name, labels, value)."""
    for gauge, labels, value in (
        *_processor(state),
        *(each for name, lane in state.lanes.items() for each in _lane(name, lane)),
        *(each for name, replica in state.replicas.items() for each in _replica(name, replica)),
    ):
        if value is not None:
            yield gauge, labels, float(value)


def _processor(state: State) -> Iterator[Gauge]:
    for status in STATUSES:
        yield "status", (("status", status),), state.status == status
    yield "redis_up", (), state.redis.up
    yield "postgres_up", (), state.postgres.up
    counted = state.dead_letters_counted is not None and state.postgres.up
    yield "dead_letters", (), state.dead_letters if counted else None
    yield "last_pass_timestamp_seconds", (), state.last_run


def _lane(name: str, lane: LaneState) -> Iterator[Gauge]:
    labels = (("lane", name),)
    known = lane.depth is not None
    yield "depth", labels, lane.depth
    yield "oldest_age_seconds", labels, (lane.oldest_age or 0.0) if known else None
    yield "scheduled", labels, lane.scheduled
    yield "parked", labels, lane.parked
    parked_age = lane.parked_oldest_age if lane.parked else 0.0
    yield "parked_oldest_age_seconds", labels, parked_age if known else None
    yield "owner", labels, lane.owner
    yield "lost_entries", labels, lane.lost
    for kind in lane.failing:
        yield "held", (
            *labels, ("operations", kind.operations), ("sqlstate", kind.sqlstate)
        ), kind.held if known else None  # fmt: skip


def _replica(name: str, replica: Replica) -> Iterator[Gauge]:
    labels = (("replica", name),)
    yield "replica_lag_seconds", labels, replica.lag
    yield "replica_lost", labels, replica.state == "lost"
