"""What follows a batch: dead letters, parking, the commit note, and only then removal from Redis.

Takes the `Outcome` of a batch, has `settle_plan` decide where each entry goes, and carries that
out. Order (rules 20, 28): dead letters in PostgreSQL, lines and records in Redis, the note, then a
plain XDEL on the connection on which the entries were read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.apply.dead_letter_writer import DeadLetterWriter, Death
from processor.apply.outcome import Outcome
from processor.buffer import commit_notes, parked, stream
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.drain.park import Parker
from processor.drain.settle_plan import POSSIBLY_APPLIED, Settlement, plan
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import RedisRefused, RedisUnavailable
from processor.ledger.dead_letters import Reason
from processor.ownership.owned_lane import OwnedLane, Page
from processor.telemetry import metrics
from processor.transaction.entry import Entry

log = logging.getLogger("processor.drain")


@dataclass(frozen=True, slots=True)
class PendingSettlement:
    """The settlement of a page whose part in PostgreSQL is done, and whose part in Redis is not.

    Unless it touches keys, its part in Redis may be carried out while PostgreSQL works on the next
    batch. If that never happens, the page is read again and found in the ledger.
    """

    lane: OwnedLane
    page: Page
    settlement: Settlement
    now: float


class Settler:
    """Carries out settlements in the dead letters and in Redis, for one processor."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, dead_letters: DeadLetterWriter,
        replicated: ReplicatedSettling, parker: Parker,
    ) -> None:  # fmt: skip
        self._policy = settings.retry
        self._hold = settings.dead_letter.hold == "named"
        self._redis = redis
        self._dead_letters = dead_letters
        self._replicated = replicated
        self._parker = parker
        self._overlay = Overlay(settings) if settings.overlay.tables else None

    def begin(
        self, lane: OwnedLane, outcome: Outcome, page: Page, now: float
    ) -> PendingSettlement:
        """Plan the settlement of a page, at `now` (Unix seconds), and write its dead letters."""
        waiting = [*(entry.id for entry, _ in outcome.failed), *(e.id for e in outcome.held)]
        waiting += [entry.id for entry, _ in outcome.paused]
        hashes = parked.payload_hashes(self._redis, lane.lane, waiting) if waiting else {}
        settlement = plan(outcome, self._policy, hold=self._hold, parked_hashes=hashes)
        self._write_dead_letters(lane, settlement.deaths)
        return PendingSettlement(lane, page, settlement, now)

    def finish(self, pending: PendingSettlement) -> None:
        """Carry out in Redis what `begin` planned. Raises RedisUnavailable."""
        lane, page, settlement = pending.lane, pending.page, pending.settlement
        recorded = self._parker.park(lane, settlement, pending.now)
        leaving = settlement.leaving(recorded)
        notes = self._note(lane, settlement, page.entries)
        crashpoint.reach("settle-before")
        if self._replicated.applies:
            self._replicated.keep(lane, page, notes)
        else:
            self._replicated.end(lane, settlement.decided)
            self._remove(lane, leaving, page.generation, notes)
        crashpoint.reach("settle-after")
        self._promote_followers(lane, settlement, pending.now)
        _count(settlement)

    def settle_parked(self, lane: OwnedLane, outcome: Outcome, now: float) -> None:
        """Settle a batch that was applied from `:parked`, at `now` (Unix seconds).

        Raises RedisRefused if a full Redis does not take the next time of a retry.
        """
        settlement = plan(outcome, self._policy, hold=self._hold)
        self._write_dead_letters(lane, settlement.deaths)
        again = [
            command for retry in settlement.retries for command in (
                parked.put(lane.lane, retry.entry, retry.attempts, retry.reason),
                parked.retry_at(lane.lane, retry.entry.id, now + retry.wait),
            )
        ]  # fmt: skip
        again += [parked.retry_at(lane.lane, e.id, score) for e, score in settlement.paused]
        if again:
            crashpoint.reach("retry-before")
            checked(self._redis.calls(again))
            crashpoint.reach("retry-recorded")
        notes = self._note(lane, settlement, None)
        if notes:
            self._redis.calls(notes)
        crashpoint.reach("release-before")
        decided = settlement.decided
        self._replicated.end(lane, decided)
        # The lines of a dead letter stay, also of a known one: they were rebuilt from it.
        blocking = {entry.id: None for entry in settlement.blocking}
        if blocking:
            self._redis.calls([c for i in blocking for c in parked.remove_record(lane.lane, i)])
        free = [e for e in (*decided, *settlement.clashing) if e.id not in blocking]
        if free:
            leaving = [(e.id, e.entry_id, e.keys) for e in free]
            parked.release(self._redis, lane.lane, leaving, now)
        crashpoint.reach("release-after")
        _count(settlement)

    def file_unreadable(
        self, lane: OwnedLane, found: Sequence[tuple[Entry, str]], generation: int
    ) -> None:
        """Make dead letters of entries that are no transactions, with their raw bytes (rule 10)."""
        deaths = [Death(entry, Reason(f"unreadable: {why}"), 1) for entry, why in found]
        self._write_dead_letters(lane, deaths)
        self.remove_dead(lane, [entry for entry, _ in found], generation)

    def file_possibly_applied(self, lane: OwnedLane, entries: Sequence[Entry]) -> None:
        """Make dead letters of entries that may have been applied before (rule 23)."""
        deaths = [Death(e, POSSIBLY_APPLIED, e.attempt + 1) for e in entries]
        self._write_dead_letters(lane, deaths)
        if self._hold:
            self._parker.hold_keys(lane, entries)

    def remove_dead(self, lane: OwnedLane, entries: Sequence[Entry], generation: int) -> None:
        """Remove entries that became dead letters from the stream."""
        self._replicated.end(lane, entries)
        if not self._replicated.applies:
            self._remove(lane, [e.entry_id for e in entries], generation)

    def _write_dead_letters(self, lane: OwnedLane, deaths: Sequence[Death]) -> None:
        if deaths:
            assert lane.owner is not None
            self._dead_letters.write(lane.owner, deaths)

    def _note(
        self, lane: OwnedLane, settlement: Settlement, page: Sequence[Entry] | None
    ) -> list[Command]:
        if not settlement.has_note:
            return []
        assert lane.owner is not None
        note = settlement.note(lane.owner.buffer, time.time(), page)
        crashpoint.reach("note-before")
        notes = [commit_notes.write(lane.lane, note)]
        if self._overlay is not None:
            notes += self._overlay.prove(settlement.applied)
        return notes

    def _remove(
        self, lane: OwnedLane, ids: Sequence[str], generation: int, notes: Sequence[Command] = ()
    ) -> None:
        """Send the note, which Redis may refuse, and the removal behind it (rule 20)."""
        if not ids:
            return
        if not self._redis.alive or self._redis.generation != generation:
            # After a rollback of Redis, the ids may be those of other entries (rule 9).
            raise RedisUnavailable("the connection to Redis on which the batch was read is closed")
        removed = self._redis.calls([*notes, stream.settle(lane.lane, ids)])[-1]
        if isinstance(removed, RedisRefused):
            raise RedisUnavailable(f"could not remove committed entries from Redis: {removed}")
        if removed != len(ids):
            log.warning("lane %s: %d of %d settled entries were already gone from the stream;"
                        " only the owner of the lane should remove entries",
                        lane.name, len(ids) - removed, len(ids))  # fmt: skip

    def _promote_followers(self, lane: OwnedLane, settlement: Settlement, now: float) -> None:
        """Entries parked behind one that ran from the stream are tried next."""
        if lane.parking.has_lines:
            keyed = [e for e in settlement.committed if e.keys]
            if keyed:
                self._parker.promote(lane, keyed, now)
                lane.parking.retry_soon()


def _count(settlement: Settlement) -> None:
    metrics.count("batches")
    metrics.count("committed", len(settlement.committed))
    if settlement.known:
        metrics.count("known", len(settlement.known))
    if settlement.retries:
        metrics.count("retried", len(settlement.retries))
