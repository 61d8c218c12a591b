"""How full the lanes are and when there is more to do: the end of each pass.

One round trip to Redis answers depth, age, pauses and the next due times; from them come the delay
that the pass answers and the frozen state that everybody reads.
"""

from __future__ import annotations

import logging

import msgspec

from processor.buffer import lane_size
from processor.buffer.lane_size import LaneSize
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.drain.gate import Gate
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane
from processor.ownership.owners import Owners
from processor.telemetry import metrics
from processor.telemetry.status import LaneState, State, as_mapping
from processor.version import __version__

log = logging.getLogger("processor.drain")

FULL = "Redis has reached its memory limit and takes nothing new"
_AGAIN = 0.1
_PUBLISHED = 1.0
_KEPT = 30
_ENDED = 2


class Backlog:
    """What one processor sees of its lanes."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, owners: Owners, instance: str
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._owners = owners
        self._instance = instance
        self._sizes: dict[str, LaneSize] = {}
        self._looked = self._told = self._heeded = float("-inf")
        self._full = False
        self.paused: set[str] = set()
        self.dead_letters = 0
        self.last_run: float | None = None

    def delay(self, now: float, wall: float) -> float:
        """Seconds until there may be more to do; `now` is monotonic, `wall` in Unix seconds."""
        if now - self._looked < _AGAIN:
            return _AGAIN
        self._look()
        self._looked = now
        moments = [self._settings.interval]
        for lane in self._owners.owned:
            if lane.lane.queue in self.paused:
                continue
            if lane.health.paused_until > now:
                moments.append(lane.health.paused_until - now)
                continue
            parking = lane.parking
            full = parking.full_until - now
            moments += [
                max(at - wall, full) for at in (parking.next_due, parking.next_retry)
                if at is not None
            ]  # fmt: skip
        # An owner touches the server at least every third of the take-over (rule 4), and a standby
        # comes as often to see whether it is wanted; both would be taken for frozen otherwise.
        moments.append(self._settings.database.takeover / 3)
        return max(0.0, min(moments))

    def heed(self, now: float) -> None:
        """Look before the first entry is read, and while the work never ends.

        Otherwise nobody would be paused, nothing delayed be due, and no lane grow old.
        """
        if now - self._heeded >= _PUBLISHED:
            self._look()
            self._heeded = now

    def _look(self) -> None:
        lanes = list(self._owners.lanes.values())
        try:
            self.paused, sizes = lane_size.measured(
                [lane.lane for lane in lanes],
                self._redis.calls(
                    lane_size.measure(self._settings.namespace, [x.lane for x in lanes])
                ),
            )
        except RedisRefused as refused:
            raise RedisUnavailable(f"Redis cannot be asked: {refused}") from None
        for lane, size in zip(lanes, sizes, strict=True):
            self._sizes[lane.name] = size
            self._note(lane, size)

    def _note(self, lane: OwnedLane, size: LaneSize) -> None:
        name = lane.name
        lane.measured(size)
        metrics.gauge("depth", size.depth, lane=name)
        metrics.gauge("oldest_age", size.oldest_age or 0.0, lane=name)
        metrics.gauge("owner", float(lane.owner is not None), lane=name)

    def forget(self) -> None:
        """Look again at once."""
        self._looked = self._heeded = float("-inf")

    def tell(self, state: State, now: float) -> None:
        """Let other processes read the state (`status`), at most once a second."""
        if now - self._told < _PUBLISHED or not self._redis.alive:
            return
        self._told = now
        told = msgspec.json.encode(as_mapping(state, version=__version__))
        key = f"{self._settings.namespace}:state:{self._instance}"
        (reply,) = self._redis.calls([("SET", key, told, "EX", _KEPT)])
        self._note_full(isinstance(reply, RedisRefused) and reply.code == "OOM")

    def _note_full(self, full: bool) -> None:
        """Redis takes nothing new, or does again: reading and settling go on (rule 20)."""
        if full and not self._full:
            log.warning("%s: it is drained; give it more memory, or see what holds it up", FULL)
        elif self._full and not full:
            log.warning("Redis takes new entries again")
        self._full = full

    def farewell(self) -> None:
        """Let other processes read that this one has ended; soon nothing is left of it."""
        ended = State(status="stopped", instance=self._instance, site=self._settings.site)
        told = msgspec.json.encode(as_mapping(ended, version=__version__))
        key = f"{self._settings.namespace}:state:{self._instance}"
        self._redis.calls([("SET", key, told, "EX", _ENDED)])

    def state(self, wall: float, now: float, gate: Gate) -> State:
        """The record to publish after a pass."""
        lanes = {n: self._lane(lane, now, gate) for n, lane in self._owners.lanes.items()}
        status, reason = self._status(gate, lanes)
        return State(
            status, reason, self.last_run,
            processed=int(metrics.value("committed")), already_applied=int(metrics.value("known")),
            retried=int(metrics.value("retried")), dead=int(metrics.value("dead")),
            dead_letters=self.dead_letters, buffer=self._owners.buffer, instance=self._instance,
            site=self._settings.site, lanes=lanes, loss=self._owners.loss,
        )  # fmt: skip

    def _status(self, gate: Gate, lanes: dict[str, LaneState]) -> tuple[str, str]:
        if gate.is_shut:
            return "outage", gate.reason
        if self._owners.standing_by:
            return "standby", "another processor owns the lanes"
        owned = [(name, lane) for name, lane in lanes.items() if lane.owner]
        if owned and all(lane.status == "paused" for _, lane in owned):
            return "paused", owned[0][1].reason
        reasons = [FULL] if self._full else []
        reasons += [f"lane {name}: {lane.reason}" for name, lane in owned if lane.reason]
        return "running", "; ".join(reasons)

    def _lane(self, lane: OwnedLane, now: float, gate: Gate) -> LaneState:
        size = self._sizes.get(lane.name)
        status, reason = "running", lane.health.reason
        if lane.cursor.later_versions and not reason:
            # They stay in the stream for a newer processor; the lane goes on and says so (rule 10).
            later = len(lane.cursor.later_versions)
            reason = f"{later} entries of a later release wait: update this processor"
        if lane.withheld and not reason:
            reason = f"{len(lane.withheld)} committed entries wait until the replicas have them"
        if gate.is_shut:
            status, reason = "outage", gate.reason
        elif lane.owner is None:
            status = "standby"
        elif lane.lane.queue in self.paused:
            status, reason = "paused", "paused by an operator"
        elif lane.health.paused_until > now:
            status = "paused"
        return LaneState(
            status, reason, size.depth if size else 0, size.scheduled if size else 0,
            size.parked if size else 0, size.oldest_age if size else None,
            lane.owner is not None, lane.owner.epoch if lane.owner else 0,
        )  # fmt: skip
