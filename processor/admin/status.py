"""The state of a buffer as `processor status` shows it: processors, lanes, replicas, dead letters.

It is read from Redis, where each processor publishes its state, so that it is available while
PostgreSQL is not. The status words are those of /health.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from processor.admin import overview
from processor.admin.overview import PublishedState
from processor.admin.sessions import OperatorSessions
from processor.buffer import observation, replica_status
from processor.buffer.lane_size import LaneSize
from processor.buffer.observation import BufferObservation, BufferObserver
from processor.config.settings import Replicas
from processor.telemetry.status import REPORT_LIFETIME, Replica, is_current

_HEALTHY = frozenset({"running", "standby", "outage", "paused"})
#: The progress of a replica is published each second, or each `replicas.interval` if that is
#: longer. After REPORT_LIFETIME or this many intervals without it, the replica was taken out of the
#: settings or its processor ended.
_INTERVALS = 5


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane; `owner` is the processor that owns it and `reason` what that processor reports."""

    size: LaneSize
    paused: bool
    owner: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Commits that a failover lost: from which server to which, and the ids of transactions."""

    before: str
    after: str
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Status:
    """A buffer at the time `at`, in Unix seconds by the clock of Redis.

    `dead_letters` is None if no processor published a count. A replica has the state `unheard` if
    its progress is no longer published.
    """

    buffer: str | None
    at: float
    lanes: Mapping[str, LaneStatus]
    dead_letters: int | None
    replicas: Mapping[str, Replica]
    losses: Sequence[Loss]
    processors: Sequence[PublishedState]
    redis_full: bool

    @property
    def healthy(self) -> bool:
        """Whether there is a processor, and each is running, standby, paused or in an outage."""
        words = {each["background_processor"]["status"] for each in self.processors}
        words -= {overview.DAMAGED, overview.LATER}
        return bool(words) and words <= _HEALTHY


def status(sessions: OperatorSessions) -> Status:
    """Read the state of the buffer once. Raises RedisUnavailable and RedisRefused."""
    settings = sessions.settings
    with sessions.redis() as redis:
        seen = BufferObserver(settings).observe(redis, complete=True)
        states = overview.processors(redis, settings)
        replicas = replica_status.replicas(redis, settings.namespace)
        losses = replica_status.losses(redis, settings.namespace)
        full = overview.is_full(redis)
    return Status(
        buffer=seen.identity,
        at=seen.now,
        lanes=_lanes(seen, states),
        dead_letters=_dead_letters(states),
        replicas={name: _as_of_now(each, settings.replicas)
                  for name, each in sorted(replicas.items())},
        losses=[Loss(each["from"], each["to"], each["ids"].split(",")) for each in losses],
        processors=states,
        redis_full=full,
    )


def _dead_letters(states: Sequence[PublishedState]) -> int | None:
    """The number that a processor counted last; None if none has counted them yet."""
    shown = [each["background_processor"] for each in states]
    # Release 0.1 does not publish when it counted.
    counted = [each for each in shown if each.get("dead_letters_counted", "") is not None]
    return max((each["dead_letters"] for each in counted), default=None)


def _lanes(seen: BufferObservation, states: Sequence[PublishedState]) -> dict[str, LaneStatus]:
    owners = {
        name: (each["instance"], lane["reason"])
        for each in states
        for name, lane in each["lanes"].items()
        if lane["owner"]
    }
    return {
        name: LaneStatus(size, observation.queue_of(name) in seen.paused,
                         *owners.get(name, (None, "")))
        for name, size in seen.lanes.items()
    }


def _as_of_now(replica: Replica, settings: Replicas) -> Replica:
    """The replica as published, or `unheard` if that is too long ago to say how far behind it is.

    A lost replica stays lost until a processor that follows it publishes otherwise.
    """
    lifetime = max(REPORT_LIFETIME, _INTERVALS * settings.interval)
    if replica.state == "lost" or is_current(replica.told, time.time(), lifetime):
        return replica
    return replace(replica, state="unheard", lag=None)
