"""Taking entries from the lanes: reading ahead by one page a lane, decoding, choosing what is next.

Reading is XRANGE from a cursor, so nothing is handed out and nothing can be stranded (rule 8). All
lanes that have no page are read in one round trip, while PostgreSQL works on the batch before: so
`high` waits for at most one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from processor import crashpoint
from processor.buffer import stream
from processor.buffer.stream import Raw
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane, Page
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode
from processor.transaction.ids import id_of_key


class Prefetch:
    """Reads pages for the lanes of one processor."""

    def __init__(self, settings: Settings, redis: RedisConnection) -> None:
        self._settings = settings
        self._redis = redis

    def fill(self, lanes: Sequence[OwnedLane]) -> None:
        """See that each of these lanes has a page, if there are entries for one."""
        empty = [lane for lane in lanes if lane.cursor.page is None]
        while empty:
            replies = self._redis.calls(
                [stream.read(lane.lane, lane.cursor.position, self._count(lane)) for lane in empty]
            )
            crashpoint.reach("batch-read")
            # A page of nothing but entries that have to stay is passed over at once.
            empty = [lane for lane, reply in zip(empty, replies, strict=True)
                     if not self._page(lane, reply)]  # fmt: skip

    def _count(self, lane: OwnedLane) -> int:
        most = lane.health.batch_limit or self._settings.batch.entries
        return max(1, min(most, int(self._settings.batch.bytes / lane.cursor.entry_bytes)))

    def _page(self, lane: OwnedLane, reply: Any) -> bool:
        """Take the reply to a read; False if it has to be read on."""
        if isinstance(reply, RedisRefused):
            raise RedisUnavailable(f"lane {lane.name} cannot be read: {reply}")
        raws = stream.entries(reply)
        if not raws:
            # Ids may have begun anew below the cursor (rule 9); the next pass looks from the head.
            lane.cursor.reach_end()
            return True
        raws = self._within(raws)
        size = sum(len(raw[3]) for raw in raws) / len(raws)
        lane.cursor.advance(raws[-1][0], size)
        page = self._decode(lane, raws)
        if page.entries or page.unreadable:
            lane.cursor.page = page
        return lane.cursor.page is not None

    def _within(self, raws: list[Raw]) -> list[Raw]:
        """As many entries as fit a batch's bytes, one at the least; the others are read again."""
        total = 0
        for number, raw in enumerate(raws):
            total += len(raw[3])
            if number and total > self._settings.batch.bytes:
                return raws[:number]
        return raws

    def _decode(self, lane: OwnedLane, raws: list[Raw]) -> Page:
        page = Page(self._redis.generation, raws[0][0], raws[-1][0])
        for entry_id, version, body, whole in raws:
            if entry_id in lane.cursor.later_versions:
                continue
            try:
                page.entries.append(decode(entry_id, version, body))
            except UnknownVersion:
                lane.cursor.later_versions.add(entry_id)
            except Unreadable as error:
                page.unreadable.append((unreadable(lane, entry_id, whole), str(error)))
        return page

    @staticmethod
    def choose(lanes: Sequence[OwnedLane]) -> OwnedLane | None:
        """The lane whose page is next: by weight, grown by the age of its oldest entry.

        Smooth weighted round robin: with weights 8, 3, 1 and all lanes full, twelve batches are
        8, 3 and 1 of each, well mixed; a lane that waits for minutes gains on the others.
        """
        ready = [lane for lane in lanes if lane.cursor.page is not None]
        if not ready:
            return None
        shares = [lane.turn.share for lane in ready]
        for lane, share in zip(ready, shares, strict=True):
            lane.turn.credit += share
        chosen = max(ready, key=lambda lane: lane.turn.credit)
        chosen.turn.credit -= sum(shares)
        return chosen


def unreadable(lane: OwnedLane, entry_id: str, whole: bytes) -> Entry:
    """A stand-in for an entry that is no transaction, so that it can be filed like one."""
    made = id_of_key(f"unreadable {lane.lane.stream} {entry_id}")
    digest = hashlib.blake2b(whole, digest_size=16).hexdigest()
    return Entry(entry_id, made, digest, (), (), whole)
