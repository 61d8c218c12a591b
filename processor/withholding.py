"""Removal from the stream where `settle` is replicated: after the replicas that may be promoted
have replayed the outcome (rule 22).

A committed page stays in the stream and is remembered as a range. When the replicas have it, the
range is read anew and what has come to its end is removed: not what is parked - its copy in the
stream is what a failover would bring back - and not what waits for a later release.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from processor import buffer, parked
from processor.entry import Entry, UnknownVersion, Unreadable, decode
from processor.errors import RedisRefused, RedisUnavailable
from processor.following import Following
from processor.ownership import OwnedLane, Page, last_generated, order
from processor.redis_connection import Command, RedisConnection
from processor.withheld import Range

_PAGE = 500
#: Removing has the thread for this long between two batches, seconds.
_TURN = 0.02


class Withholding:
    """What the lanes of one processor keep in their streams."""

    def __init__(self, redis: RedisConnection, following: Following) -> None:
        self._redis = redis
        self._following = following

    @property
    def applies(self) -> bool:
        """Whether anything has to stay until it is replicated."""
        return self._following.replicates

    def keep(self, lane: OwnedLane, page: Page, notes: Sequence[Command]) -> None:
        """A page is committed: tell so, and let it stay."""
        self._redis.calls(notes) if notes else None
        newest = self._following.marks.newest()
        if newest is None or self._redis.generation != page.generation or not self._redis.alive:
            raise RedisUnavailable("the connection on which the batch was read is gone")
        lane.withheld.on(page.generation)
        count = len(page.entries) + len(page.unreadable)
        lane.withheld.add(newest, page.first, page.last, count)

    def keep_each(self, lane: OwnedLane, entries: Sequence[Entry]) -> None:
        """Entries came to their end one by one; their copies in the stream stay."""
        newest = self._following.marks.newest()
        if self.applies and newest is not None:
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
        singles = lane.withheld.due_singles(self._following.has)
        if singles:
            self._remove(lane, singles)
        # A replica that comes back after hours sets free a backlog; new work must not wait for it.
        end = time.monotonic() + _TURN
        while (span := lane.withheld.due(self._following.has)) is not None:
            self._release(lane, span)
            if time.monotonic() > end:
                return True
        return False

    def is_whole(self, lane: OwnedLane) -> bool:
        """Whether the stream still is the one that was read, up to the cursor at least.

        Then nothing has to be read again: what stays in it is withheld, or the copy of what is
        parked.
        """
        return self.applies and (
            lane.cursor == "-" or order(last_generated(self._redis, lane.lane)) >= order(lane.cursor)
        )

    def _release(self, lane: OwnedLane, span: Range) -> None:
        start = span.first
        while True:
            reply = self._redis.call(
                "XRANGE", lane.lane.stream, start, span.last, "COUNT", _PAGE
            )
            raws = buffer.entries(reply)
            gone = self._at_their_end(lane, raws)
            if gone:
                self._remove(lane, gone)
            if len(raws) < _PAGE:
                return
            start = f"({raws[-1][0]}"

    def _at_their_end(self, lane: OwnedLane, raws: Sequence[buffer.Raw]) -> list[str]:
        staying = {*lane.withheld.single, *lane.later, *(e.entry_id for e in lane.stuck.values())}
        ids = [raw[0] for raw in raws if raw[0] not in staying]
        if not ids or not self._redis.call("HLEN", lane.lane.parked):
            return ids
        by_id = {}
        for entry_id, version, body, _ in raws:
            try:
                by_id[decode(entry_id, version, body).id] = entry_id
            except (Unreadable, UnknownVersion):
                continue
        waiting = parked.entry_ids(self._redis, lane.lane, list(by_id))
        return [entry_id for entry_id in ids if entry_id not in waiting]

    def _remove(self, lane: OwnedLane, ids: Sequence[str]) -> None:
        removed = self._redis.calls([buffer.settle(lane.lane, ids)])[0]
        if isinstance(removed, RedisRefused):
            raise RedisUnavailable(f"Redis does not settle: {removed}")
