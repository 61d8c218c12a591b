"""How full the lanes are, and when there is more to do: the end of each pass.

One round trip to Redis answers depth, age, pauses and the next due times of all lanes.
"""

from __future__ import annotations

import logging
import time

from processor.buffer import lane_size
from processor.buffer.lane_size import LaneSize
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owners import Owners

log = logging.getLogger("processor.drain")

#: Redis is not asked again within this time after the end of a pass, seconds.
_AT_MOST_EVERY = 0.1
#: While passes follow each other without pause, Redis is asked this often, seconds.
_BUSY_EVERY = 1.0
#: A clock that goes back by no more than so many seconds is corrected, not set.
_STEP = 1.0


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
        self._clock_offset: float | None = None
        #: By how many seconds the clock of Redis went back since the last pass that dealt with it.
        self.went_back = 0.0

    def redis_time(self, now: float) -> float:
        """The clock of Redis at `now` (monotonic), in Unix seconds: delays and waits end by it."""
        return now + (self._clock_offset or 0.0)

    def delay(self, now: float) -> float:
        """Seconds until there may be more to do; `now` is monotonic."""
        if any(lane.cursor.passing_later for lane in self._owners.owned):
            return 0.0
        if now - self._measured < _AT_MOST_EVERY:
            return _AT_MOST_EVERY
        self._measure()
        self._measured = now
        if self.went_back:
            return 0.0
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
            for moment in (due, retry):
                moments += [max(moment - self.redis_time(now), full)] if moment is not None else []
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
        asked = time.monotonic()
        replies = self._redis.read(lane_size.measure(self._settings.namespace, keys))
        try:
            self.paused, sizes = lane_size.measured(keys, replies)
        except RedisRefused as refused:
            raise RedisUnavailable(f"cannot read how full the lanes are: {refused}") from None
        self._set_clock(int(replies[0][0]) + int(replies[0][1]) / 1e6, asked)
        for lane, size in zip(lanes, sizes, strict=True):
            self.sizes[lane.name] = size
            lane.measured(size)

    def _set_clock(self, redis_time: float, asked: float) -> None:
        """Take over the clock of Redis, which was asked at `asked` (monotonic)."""
        if self._clock_offset is not None:
            # Redis answered later than it was asked: what is missing was taken back.
            step = asked + self._clock_offset - redis_time
            if step > _STEP:
                self.went_back += step
                log.warning("the clock of Redis went back by %.1f s: what is delayed or waits for"
                            " its next attempt is made due by the new time", step)  # fmt: skip
        self._clock_offset = redis_time - time.monotonic()
