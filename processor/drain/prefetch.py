"""Reading the lanes: one page ahead in each, decoded, and the choice of the lane that is next.

Reading is XRANGE from a cursor, so nothing is handed out and nothing can be stranded (rule 8). All
lanes without a page are read in one round trip, while PostgreSQL works on the batch before: so
`high` waits for at most one batch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from processor import crashpoint
from processor.buffer import stream
from processor.buffer.stream import Raw
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane, Page
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode, is_later
from processor.transaction.ids import derived_id

#: Entries of a later release are passed for so many seconds at once: other lanes have work.
_PASSING = 0.1


class Prefetch:
    """Reads pages for the lanes of one processor."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, replicated: ReplicatedSettling
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._replicated = replicated

    def rewind(self, lanes: Sequence[OwnedLane]) -> None:
        """At the start of a pass: have lanes that were read to their end read again (rule 9).

        If entries are withheld and the stream is the one that was read, only those that could not
        be parked are read again, and what comes after them.
        """
        for lane in lanes:
            if not lane.cursor.rewinds or lane.cursor.page is not None:
                continue
            if self._has_only_later(lane):
                lane.cursor.rewinds = False
            elif not self._replicated.is_whole(lane):
                lane.withheld.forget()
                lane.rewind("-")
            elif lane.parking.unparked:
                unparked = [entry.entry_id for entry in lane.parking.unparked.values()]
                lane.rewind(lane.withheld.back_to(unparked) or "-")
            else:
                lane.cursor.rewinds = False

    def _has_only_later(self, lane: OwnedLane) -> bool:
        """Whether the stream has nothing but the entries of a later release that were passed.

        Then it is not read from its head again, however many they are.
        """
        if not lane.cursor.later or lane.withheld or lane.parking.unparked:
            return False
        return bool(self._redis.call("XLEN", lane.lane.stream) == lane.cursor.later)

    def fill(self, lanes: Sequence[OwnedLane]) -> None:
        """Read a page for each of these lanes that has none, if there are entries for one."""
        empty = [lane for lane in lanes if lane.cursor.page is None]
        end = time.monotonic() + _PASSING
        for lane in empty:
            lane.cursor.passing_later = False
        while empty:
            if time.monotonic() > end:
                for lane in empty:
                    lane.cursor.passing_later = True
                return
            replies = self._redis.read(
                [stream.read(lane.lane, lane.cursor.position, self._count(lane)) for lane in empty]
            )
            crashpoint.reach("batch-read")
            # If all entries that were read have to stay, the lane is read on at once.
            empty = [lane for lane, reply in zip(empty, replies, strict=True)
                     if not self._page(lane, reply)]  # fmt: skip

    def _count(self, lane: OwnedLane) -> int:
        most = lane.health.batch_limit or self._settings.batch.entries
        return max(1, min(most, int(self._settings.batch.bytes / lane.cursor.entry_bytes)))

    def _page(self, lane: OwnedLane, reply: Any) -> bool:
        """Take the reply to a read; return False if the lane has to be read on."""
        if isinstance(reply, RedisRefused):
            raise RedisUnavailable(f"lane {lane.name} cannot be read: {reply}")
        raws = stream.entries(reply)
        if not raws:
            lane.cursor.reach_end()
            return True
        cut = stream.cut_sizes(reply) if self._redis.is_careful else {}
        raws = self._within(raws, cut)
        size = sum(len(raw[3]) for raw in raws) / len(raws)
        lane.cursor.advance(raws[-1][0], len(raws), size)
        page = self._decode(lane, raws, cut)
        if page.entries or page.unreadable:
            lane.cursor.page = page
        return lane.cursor.page is not None

    def _within(self, raws: list[Raw], cut: Mapping[str, int]) -> list[Raw]:
        """As many entries as fit the bytes of a batch, at least one; the rest is read again."""
        total = 0
        for number, raw in enumerate(raws):
            total += cut.get(raw[0], 0) or len(raw[3])
            if number and total > self._settings.batch.bytes:
                return raws[:number]
        return raws

    def _decode(self, lane: OwnedLane, raws: list[Raw], cut: Mapping[str, int]) -> Page:
        page = Page(self._redis.generation, raws[0][0], raws[-1][0])
        for entry_id, version, body, whole in raws:
            if entry_id in cut and not is_later(version):
                why = f"{cut[entry_id]} bytes are too many, only the first are kept"
                page.unreadable.append((_stand_in(lane, entry_id, whole), why))
                continue
            try:
                page.entries.append(decode(entry_id, version, body))
            except UnknownVersion as error:
                lane.cursor.pass_later(entry_id, str(error))
            except Unreadable as error:
                page.unreadable.append((_stand_in(lane, entry_id, whole), str(error)))
        return page

    @staticmethod
    def choose(lanes: Sequence[OwnedLane]) -> OwnedLane | None:
        """Return the lane whose page is next: by weight and by the age of its oldest entry.

        Smooth weighted round robin: with weights 8, 3, 1 and all lanes full, twelve batches are 8,
        3 and 1 of each, well mixed; a lane whose entries wait for minutes gains on the others.
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


def _stand_in(lane: OwnedLane, entry_id: str, whole: bytes) -> Entry:
    """An entry in place of one that is no transaction, so that it can become a dead letter."""
    made = derived_id(f"unreadable {lane.lane.stream} {entry_id}")
    digest = hashlib.blake2b(whole, digest_size=16).hexdigest()
    return Entry(entry_id, made, digest, (), (), whole)
