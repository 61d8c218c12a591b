"""Notices that Redis lost entries of a lane: its stream was evicted, deleted or restored.

The owner compares what Redis says of each stream with what it saw before, when it takes the lane
and every few seconds. What it saw is kept in the lane's row as well, for the next owner.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msgspec import structs

from processor.buffer.entry_ids import StreamHistory, decoded, histories, order
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.ledger import stream_losses
from processor.ledger.stream_losses import Loss
from processor.ownership.owned_lane import OwnedLane

log = logging.getLogger("processor.ownership")

_EVERY = 5.0
#: What was seen is kept in PostgreSQL this often: over a long link it takes the time of a batch.
_KEPT_EVERY = 30.0


class StreamWatch:
    """Watches the streams of the lanes that one processor owns."""

    def __init__(self, database: PostgresSession, redis: RedisConnection) -> None:
        self._database = database
        self._redis = redis
        self._looked = self._kept = float("-inf")

    def look(self, lanes: Sequence[OwnedLane], now: float) -> None:
        """Look at all streams if it is time; `now` is monotonic.

        Raises Unavailable, RedisRefused and DatabaseError.
        """
        if now - self._looked < _EVERY or not lanes:
            return
        self._looked = now
        found, clock = histories(self._redis, [lane.lane for lane in lanes])
        for lane, history in zip(lanes, found, strict=True):
            _compare(self._database, lane, history, clock)
        self._forget_acknowledged(lanes)
        if now - self._kept >= _KEPT_EVERY:
            self._kept = now
            _keep(self._database, lanes)

    def _forget_acknowledged(self, lanes: Sequence[OwnedLane]) -> None:
        lossy = {lane.name: lane for lane in lanes if lane.streamed.loss}
        if lossy:
            buffer = next(x.owner.buffer for x in lanes if x.owner is not None)
            for name in stream_losses.acknowledged(self._database, buffer, list(lossy)):
                lossy[name].streamed.loss = None


def begin(
    database: PostgresSession, redis: RedisConnection, lane: OwnedLane, seen: str | None,
    committed: str | None,
) -> None:  # fmt: skip
    """Compare the stream of a lane that was taken with what was seen of it before.

    `seen` is what its last owner kept, `committed` the last entry of the lane's batches.
    """
    assert lane.owner is not None
    past = [one for one in (lane.streamed.seen, decoded(seen)) if one is not None]
    before = max(past, key=lambda one: order(one.last), default=StreamHistory(added=None))
    if committed is not None and order(committed) > order(before.last):
        before = structs.replace(before, last=committed)
    lane.streamed.seen = before
    found = stream_losses.of_lane(database, lane.owner.buffer, lane.name)
    lane.streamed.loss = found if found and found.found_at else None
    (now,), clock = histories(redis, [lane.lane])
    _compare(database, lane, now, clock)


def _compare(database: PostgresSession, lane: OwnedLane, now: StreamHistory, clock: int) -> None:
    """Compare a stream with what was seen of it; `clock` is the time of Redis (ms)."""
    before, lane.streamed.seen = lane.streamed.seen, now
    if before is None or now.continues(before) or lane.owner is None:
        return
    first = before.first or before.last
    if order(first) < order(now.last) < order(before.last):
        first = now.last  # It was restored: what came before is there.
    loss = Loss(first, f"{clock}-0", before.length)
    earlier = stream_losses.of_lane(database, lane.owner.buffer, lane.name)
    if earlier is not None and earlier.found_at is not None:
        loss = Loss(earlier.loss.first, loss.last, earlier.loss.entries + loss.entries)
    stream_losses.record(database, lane.owner, loss)
    _keep(database, [lane])
    lane.streamed.loss = stream_losses.of_lane(database, lane.owner.buffer, lane.name)
    log.error("loss window: %s", lane.streamed.loss)


def _keep(database: PostgresSession, lanes: Sequence[OwnedLane]) -> None:
    """Record what was seen for the next owner, if it has changed."""
    changed = [x for x in lanes if x.owner is not None and x.streamed.seen != x.streamed.kept]
    if changed:
        stream_losses.keep_seen(database, {
            x.owner: x.streamed.seen.encoded() for x in changed if x.owner and x.streamed.seen
        })  # fmt: skip
    for lane in changed:
        lane.streamed.kept = lane.streamed.seen
