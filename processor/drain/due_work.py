"""Work that has become due: delayed entries enter their lane, parked entries are tried again.

While Redis is full nothing can be added to it, so both wait for a second; reading and settling
continue (rule 20).
"""

from __future__ import annotations

from collections.abc import Sequence

from processor.buffer import delayed, parked
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.drain.admission import Admission
from processor.drain.attempts import Attempts, carry_out
from processor.drain.settle import Settler
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane


class DueWork:
    """Does what is due in the lanes of one processor."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, admission: Admission, attempts: Attempts,
        settler: Settler, replicated: ReplicatedSettling,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._redis = redis
        self._admission = admission
        self._attempts = attempts
        self._settler = settler
        self._replicated = replicated

    def move_delayed(self, lanes: Sequence[OwnedLane], now: float) -> None:
        """Move delayed entries that are due at `now` (Unix seconds) into their streams."""
        for lane in lanes:
            if lane.parking.is_due(lane.parking.next_due, now):
                try:
                    self._admission.judge_delayed(lane, now)
                    delayed.move(self._redis, lane.lane, now)
                except RedisRefused as refused:
                    _wait_if_full(lane, refused)

    def retry_parked(self, lanes: Sequence[OwnedLane], now: float) -> bool:
        """Apply a batch of the parked entries of each lane that are due at `now` (Unix seconds).

        Return whether there were any. Raises Unavailable and DatabaseError.
        """
        worked = False
        for lane in lanes:
            if not lane.parking.is_due(lane.parking.next_retry, now):
                continue
            most = lane.health.batch_limit or self._settings.batch.entries
            entries = parked.due_entries(self._redis, lane.lane, now, most)
            if not entries:
                lane.parking.nothing_to_retry()
                continue
            if self._replicated.applies and not (entries := lane.in_turn(entries)):
                continue
            outcome = self._admission.dead_before_retry(lane, entries) or carry_out(
                self._attempts.attempt(lane, entries), lane
            )
            if outcome is None:
                continue
            worked = True
            try:
                self._settler.settle_parked(lane, outcome, now)
            except RedisRefused as refused:
                _wait_if_full(lane, refused)
        return worked


def _wait_if_full(lane: OwnedLane, refused: RedisRefused) -> None:
    """Add nothing to the lane for a second if Redis is full; raise RedisUnavailable otherwise."""
    if refused.code != "OOM":
        raise RedisUnavailable(str(refused))
    lane.parking.redis_was_full()
