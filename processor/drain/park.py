"""Parking: entries that have to wait are put into the lines of their keys, and get a record.

See `buffer.parked` for the structures in Redis. What a full Redis refuses stays in the stream, and
its keys are blocked in memory (rule 20).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from processor import crashpoint
from processor.buffer import parked, waiting_lines
from processor.connections.redis_client import Command, RedisConnection
from processor.drain.settle_plan import Settlement
from processor.errors import RedisRefused, RedisUnavailable
from processor.ownership.owned_lane import OwnedLane
from processor.telemetry import metrics
from processor.transaction.entry import Entry

#: An entry that has to wait, and the commands that write its record.
Waiting = tuple[Entry, list[Command]]


class Parker:
    """Parks the entries of one processor's lanes."""

    def __init__(self, redis: RedisConnection) -> None:
        self._redis = redis

    def park(self, lane: OwnedLane, settlement: Settlement, now: float) -> list[Entry]:
        """Park what a settlement says, at `now` (Unix seconds); return those with a record now."""
        crashpoint.reach("park-before")
        waiting: list[Waiting] = [
            (retry.entry, [
                parked.retry_at(lane.lane, retry.entry.id, now + retry.wait),
                parked.put(lane.lane, retry.entry, retry.attempts, retry.reason),
            ])
            for retry in settlement.retries
        ]  # fmt: skip
        waiting += [
            (e, [parked.retry_at(lane.lane, e.id, score), parked.put_new(lane.lane, e)])
            for e, score in settlement.paused
        ]
        waiting += [(entry, []) for entry in settlement.blocking]
        waiting += [(e, [parked.put_new(lane.lane, e)]) for e in settlement.held]
        recorded = self._put(lane, waiting)
        if settlement.held:
            self.promote(lane, settlement.held, now)
            metrics.count("blocked", len(settlement.held))
        crashpoint.reach("park-after")
        return recorded

    def hold_keys(self, lane: OwnedLane, entries: Iterable[Entry]) -> None:
        """Put dead letters into the lines of their keys, without a record."""
        self._put(lane, [(entry, []) for entry in entries])

    def promote(self, lane: OwnedLane, entries: Iterable[Entry], now: float) -> None:
        """Have the first in each line of these entries' keys tried at `now`, if it can be."""
        try:
            parked.promote(self._redis, lane.lane, (k for e in entries for k in e.keys), now)
        except RedisRefused as refused:
            if refused.code != "OOM":
                raise

    def _put(self, lane: OwnedLane, waiting: Sequence[Waiting]) -> list[Entry]:
        """Put entries into their lines, then write their records; return those with a record now.

        An entry that cannot be parked stays in the stream, and so do later entries with one of its
        keys, or they would overtake it. A dead letter without a record does not stay: the ledger
        has it. While its place is missing, no entry is put into a line, in which it would be first.
        """
        parking = lane.parking
        lined = [(entry, waiting_lines.join(lane.lane, entry)) for entry, _ in waiting]
        refused = self._refused(lined, all_of_them=parking.lacks_dead_letters)
        crashpoint.reach("park-lines")
        blocked = parking.unparked_keys
        for entry, record in waiting:
            if not record:
                if entry.id in refused:
                    parking.lacks_dead_letters = True
                    blocked.update(entry.keys)
            elif entry.id in refused or not blocked.isdisjoint(entry.keys):
                parking.leave_in_stream(entry)
                blocked.update(entry.keys)
        behind = [e for e, lines in lined
                  if lines and e.id in parking.unparked and e.id not in refused]  # fmt: skip
        if behind:
            self._redis.call(*waiting_lines.leave(lane.lane, behind))
        placed = [(entry, record) for entry, record in waiting if entry.id not in parking.unparked]
        refused = self._refused(placed)
        crashpoint.reach("park-body")
        for entry, _ in placed:
            if entry.id in refused:
                parking.leave_in_stream(entry)
        if placed:
            parking.put(entry for entry, _ in placed)
        return [entry for entry, record in placed if record and entry.id not in refused]

    def _refused(self, waiting: Sequence[Waiting], *, all_of_them: bool = False) -> set[str]:
        """Send all commands at once; return the ids of entries that a full Redis did not take.

        `all_of_them`: send nothing, and regard all as not taken.
        """
        commands = [(entry.id, command) for entry, some in waiting for command in some]
        if not commands or all_of_them:
            return {i for i, _ in commands}
        replies = self._redis.calls([command for _, command in commands])
        refusals = {
            i: reply for (i, _), reply in zip(commands, replies, strict=True)
            if isinstance(reply, RedisRefused)
        }  # fmt: skip
        for refusal in refusals.values():
            if refusal.code != "OOM":
                raise RedisUnavailable(str(refusal))
        return set(refusals)
