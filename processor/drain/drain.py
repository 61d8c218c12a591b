"""One pass over the lanes: what the drain thread does each time it wakes.

`Drain.run` follows the five steps of the contract and answers how long to wait. It owns both
connections; `apply` and `settling` do the work of a batch, `ownership` tells whose lanes are.
Every failure of a server ends in one place, `_away`: the gate shuts, what was read is forgotten.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

from processor import crashpoint
from processor.apply.applier import Applier
from processor.apply.committer import Committer
from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.apply.outcome import Outcome
from processor.buffer import delayed, parked
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.admission import Admission
from processor.drain.attempts import Attempts, carry_out
from processor.drain.backlog import Backlog
from processor.drain.gate import Gate
from processor.drain.maintenance import Maintenance
from processor.drain.prefetch import Prefetch
from processor.drain.settle import Settler
from processor.drain.settle_replicated import ReplicatedSettling
from processor.errors import (
    DatabaseError,
    DatabaseUnavailable,
    RedisRefused,
    RedisUnavailable,
    Unavailable,
)
from processor.ownership.connect import Connector
from processor.ownership.owned_lane import OwnedLane
from processor.ownership.owners import Owners
from processor.replicas.health import set_gauges
from processor.replicas.watch import ReplicaWatch
from processor.telemetry import metrics
from processor.telemetry.progress import Progress
from processor.telemetry.status import State

log = logging.getLogger("processor.drain")

#: Seconds after which a pass gives way to its other steps, though not before its first batch.
_BUDGET = 1.0


class Drain:
    """Drains the lanes of one processor; used by one thread."""

    def __init__(
        self, settings: Settings, instance: str, progress: Progress, stopping: Callable[[], bool],
        following: ReplicaWatch | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._progress = progress
        self._stopping = stopping
        self.gate = Gate()
        self.database = PostgresSession(settings.database, progress,
            application=f"processor {instance}")
        self.redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        self._following = following or ReplicaWatch(settings, instance, lambda: None)
        marks = self._following.marks if self._following.tracks else None
        self._session = Committer(self.database, settings.database, marks)
        self._applier = Applier(self._session, settings)
        self._attempts = Attempts(settings, self._session, self._applier, self.redis)
        burial = DeadLetterWriter(self._session, hold=settings.dead_letter.hold == "named")
        self._withholding = ReplicatedSettling(self.redis, self._following)
        self._settling = Settler(settings, self.redis, burial, self._withholding)
        self._admission = Admission(self.database, self.redis, self._settling, self._withholding)
        self.owners = Owners(settings, instance)
        self._connecting = Connector(
            settings, self._session, self.redis, self.owners, self._following
        )
        self._taking = Prefetch(settings, self.redis)
        self._outlook = Backlog(settings, self.redis, self.owners, instance)
        self._sweeps = Maintenance(
            settings, self.database, self.redis, self.owners, burial, self._outlook
        )
        self._unsettled: Callable[[], None] | None = None
        self._releasing = False

    def run(self, now: float) -> float:
        """One pass, begun at `now` (monotonic); the seconds to wait before the next one."""
        metrics.count("passes")
        crashpoint.reach("pass-start")
        if self.gate.wait(now) > 0:
            return self.gate.wait(now)
        if self.gate.is_shut:
            log.debug("outage: probing the servers")
        try:
            if self._connecting.connect(now):
                self._attempts.answered = True
            self._outlook.heed(time.monotonic())
            self._drain(now)
            self._sweeps.run(time.monotonic(), busy=self._work_left())
            self._opened(now)
            self._outlook.last_run = time.time()
            metrics.gauge("last_pass", self._outlook.last_run)
            # Also with work left: pauses and what is due are learnt from this look.
            delay = self._outlook.delay(time.monotonic(), time.time())
            return 0.0 if self._work_left() else delay
        except Unavailable as error:
            self._away(error)
        except RedisRefused as error:
            self._away(RedisUnavailable(str(error)))
        except DatabaseError as error:
            # Refused where nothing may be refused: the batch's own refusals never come here. The
            # next session looks first whether schema and lanes are still there.
            self.database.close()
            self._away(DatabaseUnavailable(str(error)))
        return self.gate.wait(time.monotonic())

    def _opened(self, now: float) -> None:
        lasted = self.gate.open(now)
        if lasted is not None:
            log.warning("outage over after %.1f s", lasted)

    def _away(self, error: Unavailable) -> None:
        """An outage, whoever is away: no attempt is spent, nothing read is trusted (P4, rule 9)."""
        now = time.monotonic()
        stale = self._connecting.session_is_old and not self.database.alive
        if self.gate.shut(now, str(error), jitter=random.random(), stale=stale):
            metrics.count("outages")
            log.warning("outage: %s", error)
        else:
            log.debug("outage continues: %s", error)
        if isinstance(error, RedisUnavailable):
            self.redis.close()
        elif self.database.alive and not self.database.idle:
            self.database.close()
        for lane in self.owners.lanes.values():
            if isinstance(error, RedisUnavailable):
                lane.forget()
            else:
                lane.read_again()
        self._unsettled = None
        self._outlook.forget()
        self._connecting.forget()

    def _drain(self, now: float) -> None:
        self._move_due(time.time())
        # Also while the streams never run empty: what is due has its turn once a pass.
        self._retry_parked(time.time())
        self._rewind()
        self._taking.fill(self._open_lanes())
        while not self._stopping():
            lane = self._taking.choose(self._open_lanes())
            if lane is not None:
                self._batch(lane)
            elif not self._retry_parked(time.time()):
                break
            self._taking.fill(self._open_lanes())
            if time.monotonic() > now + _BUDGET:
                break
        self._settle_last()

    def _meanwhile(self) -> None:
        """While PostgreSQL works: settle the batch before, read ahead, write ahead."""
        self._settle_last()
        self._taking.fill(self._open_lanes())
        for lane in self._open_lanes():
            page = lane.cursor.page
            if page is not None and page.prerendered is None:
                page.prerendered = self._applier.prerender(page.entries)

    def _settle_last(self) -> None:
        settle, self._unsettled = self._unsettled, None
        if settle is not None:
            settle()
        # Each lane, whatever the one before it answers.
        self._releasing = sum(map(self._withholding.release, self.owners.owned)) > 0

    def _rewind(self) -> None:
        for lane in self.owners.owned:
            if lane.cursor.rewinds and lane.cursor.page is None:
                lane.cursor.rewinds = False
                whole = self._withholding.is_whole(lane)
                if whole and lane.parking.unparked:
                    # What is withheld before them may be a long way.
                    stuck = [entry.entry_id for entry in lane.parking.unparked.values()]
                    lane.cursor.position = lane.withheld.back_to(stuck) or "-"
                    lane.parking.read_unparked_again()
                elif not whole:
                    lane.withheld.forget()
                    lane.cursor.position = "-"
                    lane.parking.read_unparked_again()

    def _open_lanes(self) -> list[OwnedLane]:
        now = time.monotonic()
        return [
            lane for lane in self.owners.owned
            if lane.health.paused_until <= now and lane.lane.queue not in self._outlook.paused
        ]  # fmt: skip

    def _work_left(self) -> bool:
        return self._releasing or any(lane.cursor.page is not None for lane in self._open_lanes())

    def _move_due(self, now: float) -> None:
        for lane in self._open_lanes():
            if lane.parking.is_due(lane.parking.next_due, now):
                try:
                    self._admission.judge_due(lane, now)
                    delayed.move(self.redis, lane.lane, now)
                except RedisRefused as refused:
                    self._full(lane, refused)

    def _retry_parked(self, now: float) -> bool:
        worked = False
        for lane in self._open_lanes():
            if not lane.parking.is_due(lane.parking.next_retry, now):
                continue
            most = lane.health.batch_limit or self._settings.batch.entries
            entries = parked.due_entries(self.redis, lane.lane, now, most)
            if not entries:
                lane.parking.nothing_to_retry()
                continue
            if self._withholding.applies and not (entries := lane.in_turn(entries)):
                continue
            outcome = self._admission.ended(lane, entries) or carry_out(
                self._attempts.attempt(lane, entries), lane
            )
            if outcome is None:
                continue
            worked = True
            try:
                self._settling.settle_parked(lane, outcome, now)
            except RedisRefused as refused:
                self._full(lane, refused)
        return worked

    def _batch(self, lane: OwnedLane) -> None:
        """Apply and settle the page that was read from a lane."""
        page = lane.cursor.take_page()
        assert page is not None
        crashpoint.reach("batch-decoded")
        if page.unreadable:
            self._settling.bury_unreadable(lane, page.unreadable, page.generation)
        if not page.entries:
            return
        entries, aside = self._admission.admit(lane, page)
        outcome: Outcome | None = Outcome()
        if entries:
            outcome = carry_out(self._attempts.attempt(
                lane, entries, page.prerendered, self._meanwhile), lane)
        if outcome is None:
            return
        outcome.held += aside.held
        outcome.placed += aside.placed
        outcome.clashing += aside.clashing
        self._settle_last()
        carry = self._settling.settle(lane, outcome, page, time.time())
        if outcome.keyless and not lane.parking.has_lines:
            # Nobody waits for it: Redis can be told while PostgreSQL works on the next batch.
            self._unsettled = carry
        else:
            carry()
            self._retry_parked(time.time())

    @staticmethod
    def _full(lane: OwnedLane, refused: RedisRefused) -> None:
        """Redis takes nothing new: what adds is left for a second, reading and settling go on."""
        if refused.code != "OOM":
            raise RedisUnavailable(str(refused))
        lane.parking.redis_was_full()

    def leave(self, *, ends: bool = True) -> None:
        """Give the lanes to others and close both connections: it ends, or a pass failed."""
        try:
            if self.database.idle:
                self.owners.give_up(self.database)
            else:
                self.owners.lose()
            if not ends:
                self.publish(self.state(time.time()))
            elif self.redis.alive:
                self._outlook.farewell()
        except (Unavailable, DatabaseError):
            log.info("lanes are given up by closing the session")
        self.database.close()
        self.redis.close()

    def streams(self) -> dict[str, str]:
        """Where the doorbell waits: the last id that was read, by stream."""
        if self.gate.is_shut:
            return {}
        return {lane.lane.stream: lane.cursor.doorbell for lane in self._open_lanes()}

    def state(self, now: float) -> State:
        """The state after a pass, at `now` (Unix seconds); writes nothing."""
        state = replace(
            self._outlook.state(now, time.monotonic(), self.gate),
            replicas=self._following.states(),
        )
        if self._progress.failure:
            # No other processor need have taken the lanes that it gave up, so 'standby' is wrong.
            stuck = self._progress.age(time.monotonic()) > self._settings.watchdog.limit
            word = "stuck" if stuck else "running"
            state = replace(state, status=word, reason=self._progress.failure)
        return state

    def publish(self, state: State) -> None:
        """Publish a state to Redis, for other processes, and to the gauges of the replicas."""
        set_gauges(state.replicas)
        if self.redis.alive:
            try:
                self._outlook.tell(state, time.monotonic())
            except Unavailable:
                log.debug("the state was not published to Redis")
