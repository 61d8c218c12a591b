"""What follows a batch: dead letters, parking, the commit note, and only then removal from Redis.

Takes the `Outcome` of a batch and leaves every entry in exactly one place. Order (rules 20, 28):
dead letters in PostgreSQL, lines and records in Redis, the note, then plain XDEL on the connection
on which the entries were read.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from processor import crashpoint
from processor.apply.dead_letter_writer import DeadLetterWriter, Death
from processor.apply.outcome import Outcome
from processor.apply.retry import backoff, is_final
from processor.buffer import commit_notes, parked, stream
from processor.buffer.commit_notes import Entries, Note
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import POSSIBLY_APPLIED_STATE, RedisRefused, RedisUnavailable
from processor.ledger.dead_letters import Reason
from processor.ownership.owned_lane import OwnedLane, Page
from processor.telemetry import metrics
from processor.transaction.entry import Entry

log = logging.getLogger("processor.drain")
#: The end of what nobody can tell of whether it was applied (rule 23).
DOUBTFUL = Reason(
    "possibly applied: older than the ledger's memory, back after a restore", POSSIBLY_APPLIED_STATE
)

#: An entry that has to wait, and the commands that put its record.
Waiting = tuple[Entry, list[Command]]
#: One that is to be tried again: how many attempts failed, why the last one, the seconds to wait.
Retry = tuple[Entry, int, str, float]


class Settler:
    """Carries outcomes into Redis and the dead letters."""

    def __init__(
        self, settings: Settings, redis: RedisConnection, burial: DeadLetterWriter,
        withholding: ReplicatedSettling
    ) -> None:
        self._settings = settings
        self._withholding = withholding
        self._redis = redis
        self._burial = burial
        self._hold = settings.dead_letter.hold == "named"

    def settle(
        self, lane: OwnedLane, outcome: Outcome, page: Page, now: float
    ) -> Callable[[], None]:
        """Settle a batch read from the stream as a page; `now` is in Unix seconds.

        What concerns PostgreSQL is done at once; the answer does what concerns Redis, and may be
        called while PostgreSQL works on the next batch if no keys are at stake.
        """
        self._part_strangers(lane, outcome)
        retries, deaths = self._sort(outcome)
        self._bury(lane, deaths)
        return partial(self._carry, lane, outcome, retries, deaths, page, now)

    def _carry(
        self, lane: OwnedLane, outcome: Outcome, retries: Sequence[Retry],
        deaths: Sequence[Death], page: Page, now: float,
    ) -> None:  # fmt: skip
        gone = self._park(lane, outcome, retries, deaths, now)
        gone += [*outcome.ended, *outcome.clashing, *outcome.placed]
        ids = [i for e in gone for i in (e.entry_id, *outcome.copies.get(e.entry_id, ()))]
        notes = self._note(lane, outcome, deaths, page)
        crashpoint.reach("settle-before")
        if self._withholding.applies:
            self._withholding.keep(lane, page, notes)
        else:
            self._withholding.end(lane, [*outcome.ended, *(d.entry for d in deaths)])
            self._remove(lane, ids, page.generation, notes)
        crashpoint.reach("settle-after")
        self._let_pass(lane, outcome, now)
        self._count(outcome, retries)

    def _part_strangers(self, lane: OwnedLane, outcome: Outcome) -> None:
        """Two payloads of one id would overwrite each other where they wait: one clashes."""
        waiting = [*(e for e, _ in outcome.failed), *outcome.held]
        places = parked.hashes(self._redis, lane.lane, [e.id for e in waiting]) if waiting else {}
        strange = {e.entry_id for e in waiting if places.get(e.id, e.hash) != e.hash}
        if strange:
            outcome.clashing += [e for e in waiting if e.entry_id in strange]
            outcome.failed = [(e, why) for e, why in outcome.failed if e.entry_id not in strange]
            outcome.held = [e for e in outcome.held if e.entry_id not in strange]

    def settle_parked(self, lane: OwnedLane, outcome: Outcome, now: float) -> None:
        """Settle a batch that was applied from `:parked`."""
        retries, deaths = self._sort(outcome)
        self._bury(lane, deaths)
        again = [
            command for entry, attempt, why, wait in retries for command in (
                parked.body(lane.lane, entry, attempt, why),
                parked.retry_at(lane.lane, entry.id, now + wait),
            )
        ]  # fmt: skip
        if again:
            checked(self._redis.calls(again))
        ended = [*outcome.ended, *(d.entry for d in deaths)]
        done = [*ended, *outcome.clashing]
        holding = {d.entry.id for d in deaths if self._burial.holds(d)}
        # Dead already, and its lines were rebuilt from the dead letter: it goes on holding them.
        holding |= {e.id for e in _dead(outcome) if self._hold and e.keys}
        done = [e for e in done if e.id not in holding]
        for note in self._note(lane, outcome, deaths, None):
            self._redis.calls([note])
        crashpoint.reach("release-before")
        self._withholding.end(lane, ended)
        if holding:
            self._redis.calls([c for i in holding for c in parked.forget_body(lane.lane, i)])
        if done:
            leaving = [(e.id, e.entry_id, e.keys) for e in done]
            parked.release(self._redis, lane.lane, leaving, now)
        crashpoint.reach("release-after")
        self._count(outcome, retries)

    def bury_unreadable(
        self, lane: OwnedLane, found: Sequence[tuple[Entry, str]], generation: int
    ) -> None:
        """File entries that are no transactions, with their raw bytes (rule 10)."""
        self._bury(lane, [Death(e, Reason(f"unreadable: {why}"), 1) for e, why in found])
        self.let_go(lane, [entry for entry, _ in found], generation)

    def bury_doubtful(self, lane: OwnedLane, entries: Sequence[Entry]) -> None:
        """File entries of which nobody can tell any more whether they were applied (rule 23)."""
        self._bury(lane, [Death(e, DOUBTFUL, e.attempt + 1) for e in entries])
        if self._hold:
            self._put(lane, [(entry, []) for entry in entries])

    def let_go(self, lane: OwnedLane, entries: Sequence[Entry], generation: int) -> None:
        """Remove entries from the stream that became dead letters."""
        self._withholding.end(lane, entries)
        if not self._withholding.applies:
            self._remove(lane, [e.entry_id for e in entries], generation)

    def _sort(self, outcome: Outcome) -> tuple[list[Retry], list[Death]]:
        """Part what failed into retries and deaths."""
        retries, deaths = [], []
        policy = self._settings.retry
        for entry, reason in outcome.failed:
            attempt = entry.attempt + 1
            if is_final(reason.sqlstate) or attempt >= (entry.attempts or policy.attempts):
                deaths.append(Death(entry, reason, attempt))
            else:
                wait = backoff(attempt, policy.delay, policy.max_delay)
                retries.append((entry, attempt, reason.text, wait * random.uniform(1.0, 1.1)))
        clash = Reason("the id was used before for another payload")
        deaths += [Death(entry, clash, 1, True) for entry in outcome.clashing]
        return retries, deaths

    def _bury(self, lane: OwnedLane, deaths: Sequence[Death]) -> None:
        if deaths:
            assert lane.owner is not None
            self._burial.write(lane.owner, deaths)

    def _park(
        self, lane: OwnedLane, outcome: Outcome, retries: Sequence[Retry],
        deaths: Sequence[Death], now: float,
    ) -> list[Entry]:  # fmt: skip
        """Put what waits into its place; the entries that may now leave the stream."""
        holding = [d.entry for d in deaths if self._burial.holds(d)]
        holding += [e for e in _dead(outcome) if self._hold and e.keys]
        crashpoint.reach("park-before")
        waiting: list[Waiting] = [
            (entry, [parked.retry_at(lane.lane, entry.id, now + wait),
                     parked.body(lane.lane, entry, attempt, why)])
            for entry, attempt, why, wait in retries
        ]  # fmt: skip
        waiting += [(entry, []) for entry in holding]
        waiting += [(entry, [parked.first_body(lane.lane, entry)]) for entry in outcome.held]
        left = self._put(lane, waiting)
        if outcome.held:
            self.promote(lane, outcome.held, now)
            metrics.count("parked", len(outcome.held))
        unparked = lane.parking.unparked
        left += [d.entry for d in deaths if d.entry.id not in unparked and not d.clashing]
        crashpoint.reach("park-after")
        return left

    def _put(self, lane: OwnedLane, waiting: Sequence[Waiting]) -> list[Entry]:
        """Put entries into their lines, then their records (see parked); those with a record then.

        What a full Redis refuses stays in the stream, its keys blocked in memory (rule 20), and so
        does whoever comes behind it: in line before it, it would have its turn first.
        """
        lined = [(entry, parked.lines(lane.lane, entry)) for entry, _ in waiting]
        refused = self._refused(lined)
        crashpoint.reach("park-lines")
        parking = lane.parking
        blocked = parking.unparked_keys
        for entry, _ in waiting:
            if entry.id in refused or not blocked.isdisjoint(entry.keys):
                parking.leave_in_stream(entry)
                blocked.update(entry.keys)
        behind = [e for e, lines in lined
                  if lines and e.id in parking.unparked and e.id not in refused]  # fmt: skip
        if behind:
            self._redis.call(*parked.out_of_line(lane.lane, behind))
        placed = [(entry, record) for entry, record in waiting if entry.id not in parking.unparked]
        refused = self._refused(placed)
        crashpoint.reach("park-body")
        for entry, _ in placed:
            if entry.id in refused:
                parking.leave_in_stream(entry)
        if placed:
            parking.put(entry for entry, _ in placed)
        return [entry for entry, record in placed if record and entry.id not in refused]

    def _refused(self, waiting: Sequence[Waiting]) -> set[str]:
        """Send all commands at once; the entries of which a full Redis took not everything."""
        commands = [(entry.id, command) for entry, some in waiting for command in some]
        if not commands:
            return set()
        replies = self._redis.calls([command for _, command in commands])
        refusals = {
            i: reply for (i, _), reply in zip(commands, replies, strict=True)
            if isinstance(reply, RedisRefused)
        }  # fmt: skip
        for refusal in refusals.values():
            if refusal.code != "OOM":
                raise RedisUnavailable(str(refusal))
        return set(refusals)

    def promote(self, lane: OwnedLane, entries: Iterable[Entry], now: float) -> None:
        """See that the lines of these entries have somebody to be tried."""
        try:
            parked.promote(self._redis, lane.lane, (k for e in entries for k in e.keys), now)
        except RedisRefused as refused:
            if refused.code != "OOM":
                raise

    def _note(
        self, lane: OwnedLane, outcome: Outcome, deaths: Sequence[Death], page: Page | None
    ) -> list[Command]:
        """The commit note (rule 21), if there is anything to tell."""
        done = {*(e.id for e in outcome.committed)}
        done |= {e.id for e, known in outcome.known if known.outcome == "applied"}
        if not done and not deaths:
            return []
        assert lane.owner is not None
        note = Note(
            lane.owner.buffer, time.time(), outcome.commit.position if outcome.commit else None,
            dead={d.entry.id: (d.entry.entry_id, d.reason.text) for d in deaths},
        )  # fmt: skip
        if page is None:
            note = replace(note, also=frozenset(done))
        elif done:
            other = {e.entry_id for e in outcome.clashing}
            mine = [e for e in page.entries if e.id in done and e.entry_id not in other]
            note = replace(
                note, entries=Entries.of(e.entry_id for e in mine),
                also=frozenset(e.id for e in mine if e.delayed),
            )  # fmt: skip
        crashpoint.reach("note-before")
        return [commit_notes.write(lane.lane, note)]

    def _remove(
        self, lane: OwnedLane, ids: Sequence[str], generation: int, notes: Sequence[Command] = ()
    ) -> None:
        """Send the note, whose refusal is no failure, and behind it the removal (rule 20)."""
        if not ids:
            return
        if not self._redis.alive or self._redis.generation != generation:
            # The ids may be strangers' by now (rule 9).
            raise RedisUnavailable("the connection on which the batch was read is gone")
        removed = self._redis.calls([*notes, stream.settle(lane.lane, ids)])[-1]
        if isinstance(removed, RedisRefused):
            raise RedisUnavailable(f"Redis does not settle: {removed}")
        if removed != len(ids):
            log.warning("lane %s: %d entries were removed by others", lane.name,
                        len(ids) - removed)  # fmt: skip

    def _let_pass(self, lane: OwnedLane, outcome: Outcome, now: float) -> None:
        """Whoever was parked behind an entry that ran from the stream gets its turn."""
        if lane.parking.has_lines:
            keyed = [e for e in outcome.committed if e.keys]
            if keyed:
                self.promote(lane, keyed, now)
                lane.parking.retry_soon()

    def _count(self, outcome: Outcome, retries: Sequence[object]) -> None:
        metrics.count("batches")
        metrics.count("committed", len(outcome.committed))
        if outcome.known:
            metrics.count("known", len(outcome.known))
        if retries:
            metrics.count("retried", len(retries))


def _dead(outcome: Outcome) -> list[Entry]:
    """Entries that the ledger knew as dead."""
    return [entry for entry, known in outcome.known if known.outcome == "dead"]
