"""Removal from the stream where `settle` is replicated: after the replicas that may be promoted
have replayed the outcome (rule 22).

A committed page stays in the stream and is remembered as a range. When the replicas have it, the
range is read anew and what has come to its end is removed: not what is parked - its copy in the
stream is what a failover would bring back - and not what waits for a later release.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from processor.buffer import parked, stream
from processor.buffer.entry_ids import last_generated, order
from processor.connections.redis_client import Command, RedisConnection
from processor.connections.wal_position import Position
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane, Page
from processor.ownership.replication_backlog import Range
from processor.replicas.watch import ReplicaWatch
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode

_PAGE = 500
#: Removing has the thread for this long between two batches, seconds.
_TURN = 0.02


class ReplicatedSettling:
    """What the lanes of one processor keep in their streams."""

    def __init__(self, redis: RedisConnection, following: ReplicaWatch) -> None:
        self._redis = redis
        self._following = following

    @property
    def applies(self) -> bool:
        """Whether anything has to stay until it is replicated."""
        return self._following.settles_replicated

    def keep(self, lane: OwnedLane, page: Page, notes: Sequence[Command]) -> None:
        """A page is committed: tell so, and let it stay."""
        if notes:
            self._redis.calls(notes)
        newest = self._following.marks.newest()
        if newest is None or self._redis.generation != page.generation or not self._redis.alive:
            raise RedisUnavailable("the connection on which the batch was read is gone")
        lane.withheld.on(page.generation)
        count = len(page.entries) + len(page.unreadable)
        lane.withheld.add(newest, page.first, page.last, count)

    def end(self, lane: OwnedLane, entries: Sequence[Entry]) -> None:
        """Entries came to their end: their copies in the stream stay, or nothing does."""
        newest = self._following.marks.newest()
        if newest is None or not entries:
            return
        if not self.applies:
            self._following.remember_removed(newest, (e.id for e in entries))
            return
        lane.withheld.on(self._redis.generation)
        for entry in entries:
            lane.withheld.add_single(newest, entry.entry_id)

    def release(self, lane: OwnedLane) -> bool:
        """Remove what the replicas have by now, for a while; whether there may be more of it.

        Raises RedisUnavailable.
        """
        if not lane.withheld:
            return False
        if lane.withheld.generation != self._redis.generation or not self._redis.alive:
            raise RedisUnavailable("the connection on which entries were read is gone")
        # A replica that comes back after hours sets free a backlog; new work must not wait for it.
        end = time.monotonic() + _TURN
        while self._release_some(lane):
            if time.monotonic() > end:
                return True
        return False

    def _release_some(self, lane: OwnedLane) -> bool:
        if singles := lane.withheld.due_singles(self._following.is_replicated, _PAGE):
            self._release_singles(lane, singles)
            return True
        span = lane.withheld.due(self._following.is_replicated)
        if span is not None:
            self._release(lane, span)
        return span is not None

    def is_whole(self, lane: OwnedLane) -> bool:
        """Whether the stream still is the one that was read, up to the cursor at least.

        Then nothing has to be read again: what stays in it is withheld, or the copy of what is
        parked.
        """
        if not self.applies or not lane.withheld.is_complete:
            return False
        return lane.cursor.position == "-" or (
            order(last_generated(self._redis, lane.lane)) >= order(lane.cursor.position)
        )

    def _release_singles(self, lane: OwnedLane, ids: Sequence[str]) -> None:
        newest = self._following.marks.newest()
        if newest is not None and not self._following.is_everywhere(newest):
            asked: list[Command] = [("XRANGE", lane.lane.stream, i, i) for i in ids]
            found = [reply for reply in self._redis.calls(asked) if reply]
            self._pass_over(newest, [raw for reply in found for raw in stream.entries(reply)])
        self._remove(lane, ids)

    def _release(self, lane: OwnedLane, span: Range) -> None:
        start = span.first
        while True:
            reply = self._redis.call(
                "XRANGE", lane.lane.stream, start, span.last, "COUNT", _PAGE
            )
            raws = stream.entries(reply)
            gone = self._at_their_end(lane, raws)
            if gone and not self._following.is_everywhere(span.position):
                leaving = set(gone)
                self._pass_over(span.position, [raw for raw in raws if raw[0] in leaving])
            if gone:
                self._remove(lane, gone)
            if len(raws) < _PAGE:
                return
            start = f"({raws[-1][0]}"

    def _pass_over(self, position: Position, raws: Sequence[stream.Raw]) -> None:
        """They go, and a lost replica has not got them: it is the one that may be promoted."""
        self._following.remember_removed(position, _ids(raws))

    def _at_their_end(self, lane: OwnedLane, raws: Sequence[stream.Raw]) -> list[str]:
        staying = {*lane.cursor.later_versions}
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
            raise RedisUnavailable(f"Redis does not settle: {removed}")


def _ids(raws: Sequence[stream.Raw]) -> list[str]:
    """The transactions of those entries that are some."""
    found: dict[str, None] = {}
    for entry_id, version, body, _ in raws:
        try:
            found[decode(entry_id, version, body).id] = None
        except (Unreadable, UnknownVersion):
            continue
    return list(found)
