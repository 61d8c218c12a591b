"""Work that has become due: delayed entries enter their lane, parked entries are tried again.

The owner also looks at all that is parked, a page at a time, and settles what the ledger has. The
release of an applied entry takes several commands, and a cut between them leaves a record that
nothing else would find. So does an owner that was frozen: it may write records and lines after
another processor has taken over and applied their entries (rules 26, 28).

Of each kind that is paused since all of it fails, one entry is tried now and then; when a pause has
ended, the entries that it held are made due.

While Redis is full nothing can be added to it, so both wait for a second; reading and settling
continue (rule 20).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from processor.apply.outcome import Outcome
from processor.buffer import delayed, parked
from processor.buffer.entry_ids import order
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.admission import Admission
from processor.drain.attempts import Attempts, carry_out, report, report_empty, report_resumed
from processor.drain.settle import Settler
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import RedisRefused, RedisUnavailable
from processor.ledger import outcomes
from processor.ownership import key_lines
from processor.ownership.failing_alike import KindPause
from processor.ownership.owned_lane import OwnedLane
from processor.transaction.entry import Entry
from processor.transaction.ids import is_id

log = logging.getLogger("processor.drain")

#: A paused kind is logged again after so many seconds.
_REPORT_EVERY = 60.0
#: Rounds of releases in a pass, so that releases do not delay new work.
_RELEASED_A_PASS = 10
#: A page of what is parked is looked at this often, seconds: idle, and while there is other work.
_LOOK_EVERY = 1.0
_LOOK_EVERY_BUSY = 5.0
_PAGE = 500
#: Nothing that is parked waits longer than this, seconds, or than `retry.max_delay`.
_LONGEST_WAIT = 60.0


class DueWork:
    """Does what is due in the lanes of one processor."""

    def __init__(
        self, settings: Settings, database: PostgresSession, redis: RedisConnection,
        admission: Admission, attempts: Attempts, settler: Settler, replicated: ReplicatedSettling,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._database = database
        self._redis = redis
        self._admission = admission
        self._attempts = attempts
        self._settler = settler
        self._replicated = replicated
        self._looked = float("-inf")

    def move_delayed(self, lanes: Sequence[OwnedLane], now: float) -> None:
        """Move delayed entries that are due at `now` (Unix seconds of Redis) into their streams."""
        for lane in lanes:
            if lane.parking.is_due(lane.parking.next_due, now):
                try:
                    self._admission.judge_delayed(lane, now)
                    delayed.move(self._redis, lane.lane, now)
                except RedisRefused as refused:
                    _wait_if_full(lane, refused)

    def retry_parked(self, lanes: Sequence[OwnedLane], now: float) -> bool:
        """Apply a batch of the parked entries of each lane that are due at `now` (Unix seconds).

        Return whether there were any. Raises Unavailable and DatabaseError.
        """
        worked = False
        for lane in lanes:
            if not lane.parking.is_due(lane.parking.next_retry, now):
                continue
            most = lane.health.batch_limit or self._settings.batch.entries
            entries = parked.due_entries(self._redis, lane.lane, now, most)
            if not entries:
                lane.parking.nothing_to_retry()
                continue
            entries = self._admission.without_held(lane, entries)
            if self._replicated.applies and not (entries := lane.in_turn(entries)):
                continue
            if lane.alike.pauses:
                # What is behind an entry of a paused kind stays in line, and follows it.
                entries, paused, _ = lane.alike.split(entries)
                self._settle(lane, Outcome(paused=paused), now)
                worked = True
            if entries and self._apply(lane, entries, now):
                worked = True
        return worked

    def _apply(self, lane: OwnedLane, entries: list[Entry], now: float) -> bool:
        """Apply and settle parked entries; return whether they were judged."""
        outcome = self._admission.dead_before_retry(lane, entries) or carry_out(
            self._attempts.attempt(lane, entries), lane
        )
        if outcome is not None:
            self._settle(lane, outcome, now)
        return outcome is not None

    def _settle(self, lane: OwnedLane, outcome: Outcome, now: float) -> None:
        try:
            self._settler.settle_parked(lane, outcome, now)
        except RedisRefused as refused:
            _wait_if_full(lane, refused)

    # The regular look at what is parked.

    def hasten(self, lanes: Sequence[OwnedLane], by: float, clock: float) -> None:
        """The clock of Redis went back `by` seconds, to `clock`: nothing waits that much longer."""
        for lane in lanes:
            try:
                parked.hasten(self._redis, lane.lane, by)
                delayed.hasten(self._redis, lane.lane, by, clock)
            except RedisRefused as refused:
                _wait_if_full(lane, refused)
            lane.parking.forget()

    def look(
        self, lanes: Sequence[OwnedLane], now: float, clock: float, *, busy: bool
    ) -> None:
        """Look at a page of one lane; `now` is monotonic, `clock` the time of Redis."""
        if now - self._looked < (_LOOK_EVERY_BUSY if busy else _LOOK_EVERY):
            return
        self._looked = now
        parking = [lane for lane in lanes if lane.parking.has_lines or lane.parking.has_records]
        if not parking:
            return
        lane = min(parking, key=lambda each: each.parking.looked)
        lane.parking.looked = now
        try:
            lane.parking.look_at_lines = key_lines.look(
                self._database, self._redis, lane, lane.parking.look_at_lines
            )
            if lane.parking.has_records:
                self._look_at_records(lane, clock)
        except RedisRefused as refused:
            _wait_if_full(lane, refused)

    def _look_at_records(self, lane: OwnedLane, clock: float) -> None:
        longest = max(_LONGEST_WAIT, 1.1 * self._settings.retry.max_delay)
        parked.limit_waits(self._redis, lane.lane, clock + longest)
        # Records have the size of entries, and so no more bytes are read than for a batch.
        count = max(1, min(_PAGE, int(self._settings.batch.bytes / lane.cursor.entry_bytes)))
        page = parked.page(self._redis, lane.lane, lane.parking.look_at_records, count)
        lane.parking.look_at_records = page.after
        damaged = [i for i in page.damaged if is_id(i)]
        known = outcomes.find(self._database, [*(e.id for e in page.entries), *damaged])
        decided = sorted(
            (e for e in page.entries if e.id in known), key=lambda e: order(e.entry_id)
        )
        if decided:
            log.warning("lane %s: settling %d parked entries that were decided before", lane.name,
                        len(decided))  # fmt: skip
            self._apply(lane, decided, clock)
        if gone := [i for i in damaged if i in known and known[i].outcome != "dead"]:
            parked.release(self._redis, lane.lane, [(i, "0-0", ()) for i in gone], clock)
        waiting = [e for e in page.entries if e.id not in known]
        parked.make_free_ones_due(self._redis, lane.lane, waiting, clock)
        lane.parking.retry_soon()

    # Entries whose kind is paused.

    def retry_held(self, lanes: Sequence[OwnedLane], clock: float) -> None:
        """Once a pass: end the pauses that operators resumed, and try the kinds that are due.

        `clock` is the time of Redis, in Unix seconds.

        Raises Unavailable and DatabaseError.
        """
        self._resume(lanes)
        for lane in lanes:
            for pause in list(lane.alike.pauses):
                self._look_after(lane, pause, clock)
            if lane.alike.leftovers and lane.parking.full_until <= time.monotonic():
                self._release(lane, clock)

    def _resume(self, lanes: Sequence[OwnedLane]) -> None:
        now = time.monotonic()
        paused = [x for x in lanes if x.alike.pauses or x.health.paused_until > now]
        if not paused:
            return
        key = f"{self._settings.namespace}:resumed"
        replies = self._redis.calls([("HDEL", key, lane.name) for lane in paused])
        for lane, reply in zip(paused, replies, strict=True):
            if reply == 1:
                for pause in lane.alike.pauses:
                    report_resumed(lane, pause)
                lane.alike.resume()
                lane.health.resume()

    def _look_after(self, lane: OwnedLane, pause: KindPause, clock: float) -> None:
        """Count what a pause holds, and try one of it if that is due."""
        now = time.monotonic()
        pause.held = held = parked.count_held(self._redis, lane.lane, pause.score)
        if now - pause.reported >= _REPORT_EVERY:
            report(lane, pause, now)
        blocked = lane.health.paused_until > now or lane.parking.full_until > now
        if pause.next_try > now or blocked:
            return
        pause.tried(now)
        entries = parked.one_held(self._redis, lane.lane, pause.score, held, clock)
        if entries and (free := self._admission.without_held(lane, entries)):
            self._apply(lane, free, clock)
        elif not held:
            lane.alike.end(pause)
            report_empty(lane, pause)

    def _release(self, lane: OwnedLane, clock: float) -> None:
        scores = [pause.score for pause in lane.alike.pauses]
        try:
            for _ in range(_RELEASED_A_PASS):
                more = parked.release_held(self._redis, lane.lane, scores, clock)
                lane.parking.retry_soon()
                if not more:
                    lane.alike.nothing_left()
                    return
        except RedisRefused as refused:
            _wait_if_full(lane, refused)


def _wait_if_full(lane: OwnedLane, refused: RedisRefused) -> None:
    """Add nothing to the lane for a second if Redis is full; raise RedisUnavailable otherwise."""
    if refused.code != "OOM":
        raise RedisUnavailable(str(refused))
    lane.parking.redis_was_full()
