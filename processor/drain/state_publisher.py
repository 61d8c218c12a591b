"""The state of a processor after a pass: built as one frozen record, and published in Redis.

Building it writes nothing. Published states are read by `processor status` and by other processes;
they expire, so that a processor that was killed disappears.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import msgspec

from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.drain.backlog import Backlog
from processor.drain.gate import Gate
from processor.errors import RedisRefused, Unavailable
from processor.ownership.failing_alike import in_words
from processor.ownership.owned_lane import OwnedLane
from processor.ownership.owners import Owners
from processor.replicas.watch import ReplicaWatch
from processor.telemetry import metrics
from processor.telemetry.progress import Progress
from processor.telemetry.status import RECORD, LaneState, State, as_mapping
from processor.version import __version__

log = logging.getLogger("processor.drain")

#: Reason in the state, and message in the log, of a processor whose Redis is full.
FULL = "Redis has reached its memory limit and rejects new entries"
_PUBLISH_EVERY = 1.0
#: A published state expires after so many seconds, that of a stopped processor sooner.
_LIFETIME = 30
_LIFETIME_STOPPED = 2


class StatePublisher:
    """Builds and publishes the state of one processor."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, owners: Owners, backlog: Backlog,
        watch: ReplicaWatch, gate: Gate, progress: Progress, instance: str,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._redis = redis
        self._owners = owners
        self._backlog = backlog
        self._watch = watch
        self._gate = gate
        self._progress = progress
        self._instance = instance
        self._key = f"{settings.namespace}:state:{instance}"
        self._published = float("-inf")
        self._full = False

    def build(
        self, last_run: float | None, dead_letters: int, counted: float | None
    ) -> State:
        """Return the state as of now; `last_run` and `counted` are in Unix seconds."""
        now = time.monotonic()
        lanes = {name: self._lane(lane, now) for name, lane in self._owners.lanes.items()}
        status, reason = self._status(lanes, now)
        return State(
            status, reason, last_run,
            processed=int(metrics.value("committed")), already_applied=int(metrics.value("known")),
            retried=int(metrics.value("retried")), dead=int(metrics.total("dead")),
            dead_letters=dead_letters, buffer=self._owners.buffer, instance=self._instance,
            site=self._settings.site, lanes=lanes, replicas=self._watch.states(),
            loss=self._owners.loss, dead_letters_counted=counted,
        )  # fmt: skip

    def _status(self, lanes: dict[str, LaneState], now: float) -> tuple[str, str]:
        if self._progress.failure:
            # No processor took over the lanes that this one gave up, so standby would be wrong.
            stuck = self._progress.age(now) > self._settings.watchdog.limit
            return "stuck" if stuck else "running", self._progress.failure
        if self._gate.is_shut:
            return self._gate.status, self._gate.reason
        if self._owners.standing_by:
            return "standby", "another processor owns the lanes"
        owned = [(name, lane) for name, lane in lanes.items() if lane.owner]
        if owned and all(lane.status == "paused" for _, lane in owned):
            return "paused", owned[0][1].reason
        reasons = [FULL] if self._full else []
        reasons += [f"lane {name}: {lane.reason}" for name, lane in owned if lane.reason]
        return "running", "; ".join(reasons)

    def _lane(self, lane: OwnedLane, now: float) -> LaneState:
        status, reason = "running", lane.health.reason
        wall = time.time()
        failing = tuple(pause.published(now, wall) for pause in lane.alike.pauses)
        if failing and not reason:
            reason = "; ".join(in_words(kind, lane.name) for kind in failing)
        if lane.cursor.first_later and not reason:
            # They stay in the stream for a newer processor; the lane continues (rule 10).
            entry_id, version = lane.cursor.first_later
            reason = (
                f"{lane.cursor.later} entries were written by a later release: update this"
                f" processor (envelope version {version}, the first is {entry_id})"
            )
        if lane.withheld and not reason:
            reason = f"{len(lane.withheld)} committed entries wait until the replicas have them"
        if self._gate.is_shut:
            status, reason = self._gate.status, self._gate.reason
        elif lane.owner is None:
            status = "standby"
        elif lane.lane.queue in self._backlog.paused:
            status, reason = "paused", "paused by an operator"
        elif lane.health.paused_until > now:
            status = "paused"
        state = LaneState(
            status, reason, owner=lane.owner is not None,
            epoch=lane.owner.epoch if lane.owner else 0, failing=failing, lost=lane.streamed.lost,
        )  # fmt: skip
        size = self._backlog.sizes.get(lane.name)
        if size is None or self._gate.is_shut:
            # In an outage the lanes are not measured: no figures are better than old ones.
            return state
        return replace(
            state, depth=size.depth, scheduled=size.scheduled, parked=size.parked,
            oldest_age=size.oldest_age,
        )  # fmt: skip

    def publish(self, state: State) -> None:
        """Publish a state in Redis, at most once a second."""
        now = time.monotonic()
        if now - self._published < _PUBLISH_EVERY or not self._redis.alive:
            return
        self._published = now
        try:
            reply = self._set(state, _LIFETIME)
        except Unavailable:
            log.debug("the state could not be published in Redis")
        else:
            self._note_full(isinstance(reply, RedisRefused) and reply.code == "OOM")

    def publish_stopped(self) -> None:
        """Publish that this processor has stopped. Raises RedisUnavailable."""
        stopped = State(status="stopped", instance=self._instance, site=self._settings.site)
        self._set(stopped, _LIFETIME_STOPPED)

    def _set(self, state: State, lifetime: int) -> object:
        published = as_mapping(state, version=__version__) | {"record": RECORD}
        # What the observer adds for its own process.
        del published["redis"], published["postgres"]
        encoded = msgspec.json.encode(published)
        (reply,) = self._redis.calls([("SET", self._key, encoded, "EX", lifetime)])
        return reply

    def _note_full(self, full: bool) -> None:
        """A full Redis rejects what adds to it; reading and settling continue (rule 20)."""
        if full and not self._full:
            log.warning("%s: its entries are still drained; give it more memory, or see what"
                        " delays the drain with `processor status`", FULL)  # fmt: skip
        elif self._full and not full:
            log.warning("Redis accepts new entries again")
        self._full = full
