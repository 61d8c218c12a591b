"""The state of a processor: one frozen record, replaced as a whole after each pass.

Readers (`web`, `processor status`, the host application) need no lock.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What a processor can be.
STATUSES = ("running", "standby", "outage", "misconfigured", "paused", "stuck", "stopped")
#: A server is unavailable; misconfigured: it answers, and refuses credentials or rights.
OUTAGES = frozenset({"outage", "misconfigured"})


@dataclass(frozen=True, slots=True)
class FailingKind:
    """Transactions of one kind that all fail and are held: operation and table, and the SQLSTATE.

    `condition` is the name of the SQLSTATE, `held` how many transactions wait, and `first` the id
    of the first of them. `since` and `next_try` are timestamps as text, as they are published.
    """

    operations: str
    sqlstate: str
    condition: str
    held: int
    first: str
    since: str | None
    next_try: str | None


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane.

    `depth` counts the entries in its stream and `oldest_age` is the age of the oldest of them, in
    seconds; what is scheduled or parked is not in the stream. All figures are None while Redis has
    not shown them.
    """

    status: str = "standby"
    reason: str = ""
    depth: int | None = None
    scheduled: int | None = None
    parked: int | None = None
    oldest_age: float | None = None
    owner: bool = False
    epoch: int = 0
    failing: tuple[FailingKind, ...] = ()
    parked_oldest_age: float | None = None
    #: Entries that Redis lost with the stream of the lane, until an operator acknowledges it.
    lost: int = 0


#: The watch reports each replica at least every second. An older report, in seconds, may come from
#: a watch that has ended.
REPORT_LIFETIME = 10.0


def is_current(reported: float, now: float, lifetime: float | None = None) -> bool:
    """Whether a report is recent enough that its watch probably still runs.

    `reported` and `now` are Unix seconds; `lifetime` is REPORT_LIFETIME by default.
    """
    return now - reported <= (REPORT_LIFETIME if lifetime is None else lifetime)


@dataclass(frozen=True, slots=True)
class Replica:
    """The status of a replica; also stored in Redis, as JSON with these names.

    `state` is following, lagging (behind for longer than `replicas.timeout`), away (unreachable) or
    lost (nothing waits for it). `lsn` is how far it has replayed, `lag` for how many seconds it has
    lacked a commit of this processor. `at` is when it last answered and `told` when this status was
    published, both in Unix seconds.
    """

    state: str
    at: float | None = None
    lsn: str | None = None
    lag: float | None = None
    told: float = 0.0


@dataclass(frozen=True, slots=True)
class Server:
    """Whether a server answers this processor; None while that is not known. `reason`: why not."""

    up: bool | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A processor at the end of its last pass; times are in Unix seconds.

    `dead_letters` were counted in PostgreSQL at `dead_letters_counted`, None if never. `loss`
    describes the last loss of writes that was detected, after a rollback of Redis or a failover;
    empty if there was none. `redis`, `postgres` and the figures of the lanes come from
    `runtime.observer`, whatever the pass waits for.
    """

    status: str = "stopped"
    reason: str = ""
    last_run: float | None = None
    processed: int = 0
    already_applied: int = 0
    retried: int = 0
    dead: int = 0
    dead_letters: int = 0
    buffer: str = ""
    instance: str = ""
    site: str = ""
    lanes: Mapping[str, LaneState] = field(default_factory=dict)
    loss: str = ""
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    dead_letters_counted: float | None = None
    redis: Server = Server()
    postgres: Server = Server()


#: The version of the state as published in Redis; release 0.1 published none.
RECORD = 1


def as_mapping(state: State, *, version: str = "") -> dict[str, Any]:
    """The dict that `/health`, `processor.state()` and `status --json` share."""
    return {
        "background_processor": {
            "status": state.status,
            "reason": state.reason,
            "last_run": timestamp(state.last_run),
            "transactions_processed": state.processed,
            "already_applied": state.already_applied,
            "retried": state.retried,
            "dead": state.dead,
            "dead_letters": state.dead_letters,
            "dead_letters_counted": timestamp(state.dead_letters_counted),
            "loss": state.loss,
        },
        "lanes": {name: lane_mapping(lane) for name, lane in state.lanes.items()},
        "replicas": {name: replica_mapping(each) for name, each in state.replicas.items()},
        "redis": {"up": state.redis.up, "reason": state.redis.reason},
        "postgres": {"up": state.postgres.up, "reason": state.postgres.reason},
        "buffer": state.buffer,
        "instance": state.instance,
        "site": state.site,
        "version": version,
    }


def lane_mapping(lane: LaneState) -> dict[str, Any]:
    """One lane in the dict of `as_mapping`."""
    return {
        "status": lane.status,
        "reason": lane.reason,
        "depth": lane.depth,
        "scheduled": lane.scheduled,
        "parked": lane.parked,
        "oldest_age": rounded(lane.oldest_age),
        "parked_oldest_age": rounded(lane.parked_oldest_age),
        "owner": lane.owner,
        "epoch": lane.epoch,
        "failing": [failing_mapping(kind) for kind in lane.failing],
    }


def failing_mapping(kind: FailingKind) -> dict[str, Any]:
    """One paused kind in the dict of `as_mapping`."""
    return {
        "operations": kind.operations,
        "sqlstate": kind.sqlstate,
        "condition": kind.condition,
        "held": kind.held,
        "first": kind.first,
        "since": kind.since,
        "next_try": kind.next_try,
    }


def replica_mapping(replica: Replica) -> dict[str, Any]:
    """One replica in the dict of `as_mapping`."""
    return {
        "status": replica.state,
        "lag": replica.lag,
        "lsn": replica.lsn,
        "heard": timestamp(replica.at),
    }


def rounded(seconds: float | None) -> float | None:
    """Seconds to the millisecond, as they are shown."""
    return None if seconds is None else round(seconds, 3)


def timestamp(at: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC with a Z, or None."""
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
