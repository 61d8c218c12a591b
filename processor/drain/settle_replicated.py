"""Removal from the stream where `settle` is replicated: after the replicas that may be promoted
have replayed the outcome (rule 22).

A committed page stays in the stream and is remembered as a range. When the replicas have replayed
it, the range is read again and the decided entries in it are removed. What stays: the copies of
parked entries, which a failover has to bring back, and entries of a later release.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from processor.buffer import parked, stream
from processor.buffer.entry_ids import last_generated, order
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.connections.wal_position import Position
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane, Page
from processor.ownership.replication_backlog import Range
from processor.replicas.watch import ReplicaWatch
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode, is_later

_PAGE = 500
#: Removal may take this long between two batches, seconds.
_TURN = 0.02


class ReplicatedSettling:
    """Withholds entries from removal in the lanes of one processor, and removes them later."""

    def __init__(self, redis: RedisConnection, watch: ReplicaWatch) -> None:
        self._redis = redis
        self._watch = watch
        #: Whether entries stay in the stream until they are replicated.
        self.applies = watch.settles_replicated

    def keep(self, lane: OwnedLane, page: Page, notes: Sequence[Command]) -> None:
        """A page is committed: send its note, and withhold it."""
        if notes:
            self._redis.calls(notes)
        newest = self._watch.marks.newest()
        if newest is None or self._redis.generation != page.generation or not self._redis.alive:
            raise RedisUnavailable("the connection to Redis on which the batch was read is closed")
        lane.withheld.on(page.generation)
        count = len(page.entries) + len(page.unreadable)
        lane.withheld.add(newest, page.first, page.last, count)

    def end(self, lane: OwnedLane, entries: Sequence[Entry]) -> None:
        """These entries are decided: withhold each of them, or remember that it leaves Redis."""
        newest = self._watch.marks.newest()
        if newest is None or not entries:
            return
        if not self.applies:
            self._watch.remember_removed(newest, (e.id for e in entries))
            return
        lane.withheld.on(self._redis.generation)
        for entry in entries:
            lane.withheld.add_single(newest, entry.entry_id)

    def release(self, lane: OwnedLane) -> bool:
        """Remove for a while what the replicas have by now. Return whether there may be more.

        Raises RedisUnavailable.
        """
        if not lane.withheld:
            return False
        if lane.withheld.generation != self._redis.generation or not self._redis.alive:
            raise RedisUnavailable("the connection to Redis on which entries were read is closed")
        # A replica that returns after hours releases a backlog; new work must not wait for it.
        end = time.monotonic() + _TURN
        while self._release_some(lane):
            if time.monotonic() > end:
                return True
        return False

    def _release_some(self, lane: OwnedLane) -> bool:
        if singles := lane.withheld.due_singles(self._watch.is_replicated, _PAGE):
            self._release_singles(lane, singles)
            return True
        span = lane.withheld.due(self._watch.is_replicated)
        if span is not None:
            self._release(lane, span)
        return span is not None

    def is_whole(self, lane: OwnedLane) -> bool:
        """Whether the stream is the one that was read, at least up to the cursor.

        Then nothing has to be read again: all that is left in it is withheld, or a copy of a parked
        entry.
        """
        if not self.applies or not lane.withheld.is_complete:
            return False
        position = lane.cursor.position
        return position == "-" or (
            order(last_generated(self._redis, lane.lane)) >= order(position)
        )

    def _release_singles(self, lane: OwnedLane, ids: Sequence[str]) -> None:
        newest = self._watch.marks.newest()
        if newest is not None and not self._watch.is_everywhere(newest):
            asked: list[Command] = [("XRANGE", lane.lane.stream, i, i) for i in ids]
            found = [reply for reply in self._redis.read(asked) if reply]
            self._remember(newest, [raw for reply in found for raw in stream.entries(reply)])
        self._remove(lane, ids)

    def _release(self, lane: OwnedLane, span: Range) -> None:
        start = span.first
        while True:
            (reply,) = checked(self._redis.read(
                [("XRANGE", lane.lane.stream, start, span.last, "COUNT", _PAGE)]
            ))  # fmt: skip
            raws = stream.entries(reply)
            gone = self._decided(lane, raws)
            if gone and not self._watch.is_everywhere(span.position):
                leaving = set(gone)
                self._remember(span.position, [raw for raw in raws if raw[0] in leaving])
            if gone:
                self._remove(lane, gone)
            if len(raws) < _PAGE:
                return
            start = f"({raws[-1][0]}"

    def _remember(self, position: Position, raws: Sequence[stream.Raw]) -> None:
        """These leave Redis although a lost replica lacks them, which may yet be promoted."""
        self._watch.remember_removed(position, _ids(raws))

    def _decided(self, lane: OwnedLane, raws: Sequence[stream.Raw]) -> list[str]:
        staying = {raw[0] for raw in raws if is_later(raw[1])}
        staying |= {entry.entry_id for entry in lane.parking.unparked.values()}
        singles = lane.withheld.single
        ids = [raw[0] for raw in raws if raw[0] not in staying and raw[0] not in singles]
        if not ids or not self._redis.call("HLEN", lane.lane.parked):
            return ids
        waiting = parked.entry_ids(self._redis, lane.lane, _ids(raws))
        return [entry_id for entry_id in ids if entry_id not in waiting]

    def _remove(self, lane: OwnedLane, ids: Sequence[str]) -> None:
        removed = self._redis.calls([stream.settle(lane.lane, ids)])[0]
        if isinstance(removed, RedisRefused):
            raise RedisUnavailable(f"could not remove replicated entries from Redis: {removed}")


def _ids(raws: Sequence[stream.Raw]) -> list[str]:
    """The transaction ids of those entries that can be decoded."""
    found: dict[str, None] = {}
    for entry_id, version, body, _ in raws:
        try:
            found[decode(entry_id, version, body).id] = None
        except (Unreadable, UnknownVersion):
            continue
    return list(found)
