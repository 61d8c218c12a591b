"""How full the lanes are, and when there is more to do: the end of each pass.

One round trip to Redis answers depth, age, pauses and the next due times of all lanes.
"""

from __future__ import annotations

import time

from processor.buffer import lane_size
from processor.buffer.lane_size import LaneSize
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owners import Owners

#: Redis is not asked again within this time after the end of a pass, seconds.
_AT_MOST_EVERY = 0.1
#: While passes follow each other without pause, Redis is asked this often, seconds.
_BUSY_EVERY = 1.0


class Backlog:
    """Measures the lanes of one processor.

    `sizes` is by lane name, as last measured; `paused` are the queues that operators paused.
    """

    def __init__(self, settings: Settings, redis: RedisConnection, owners: Owners) -> None:
        self._settings = settings
        self._redis = redis
        self._owners = owners
        self.sizes: dict[str, LaneSize] = {}
        self.paused: set[str] = set()
        self._measured = self._measured_busy = float("-inf")
        self._clock_offset = 0.0

    def redis_time(self, now: float) -> float:
        """The clock of Redis at `now` (monotonic), in Unix seconds; delays are over by it."""
        return now + self._clock_offset

    def delay(self, now: float, wall: float) -> float:
        """Seconds until there may be more to do; `now` is monotonic, `wall` in Unix seconds."""
        if any(lane.cursor.passing_later for lane in self._owners.owned):
            return 0.0
        if now - self._measured < _AT_MOST_EVERY:
            return _AT_MOST_EVERY
        self._measure()
        self._measured = now
        moments = [self._settings.interval]
        for lane in self._owners.owned:
            if lane.lane.queue in self.paused:
                continue
            if lane.health.paused_until > now:
                moments.append(lane.health.paused_until - now)
                continue
            if lane.alike.next_try is not None:
                moments.append(lane.alike.next_try - now)
            parking = lane.parking
            full = parking.full_until - now
            due, retry = parking.next_due, parking.next_retry
            moments += [max(due - self.redis_time(now), full)] if due is not None else []
            moments += [max(retry - wall, full)] if retry is not None else []
        # An owner touches PostgreSQL at least every third of `takeover` (rule 4), or it would be
        # taken for frozen. A standby comes as often, to see whether it has to take over.
        moments.append(self._settings.database.takeover / 3)
        return max(0.0, min(moments))

    def measure_if_due(self, now: float) -> None:
        """Measure at the start of a pass, at most once a second; `now` is monotonic.

        While the work never ends, this alone notices pauses, delayed entries and ageing lanes.
        """
        if now - self._measured_busy >= _BUSY_EVERY:
            self._measure()
            self._measured_busy = now

    def measure_soon(self) -> None:
        """Measure again at the next opportunity."""
        self._measured = self._measured_busy = float("-inf")

    def _measure(self) -> None:
        lanes = list(self._owners.lanes.values())
        keys = [lane.lane for lane in lanes]
        replies = self._redis.read(lane_size.measure(self._settings.namespace, keys))
        try:
            self.paused, sizes = lane_size.measured(keys, replies)
        except RedisRefused as refused:
            raise RedisUnavailable(f"cannot read how full the lanes are: {refused}") from None
        self._clock_offset = int(replies[0][0]) + int(replies[0][1]) / 1e6 - time.monotonic()
        for lane, size in zip(lanes, sizes, strict=True):
            self.sizes[lane.name] = size
            lane.measured(size)
