"""One pass over the lanes: what the drain thread does each time it wakes.

`Drain.run` is the pass. A failure of either server ends it in one place, `_outage`: the gate shuts,
and what was read is forgotten. `Drain` owns both connections and wires the steps together.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from processor import crashpoint
from processor.apply.applier import Applier
from processor.apply.committer import Committer
from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.apply.outcome import Outcome
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.admission import Admission
from processor.drain.attempts import Attempts, carry_out
from processor.drain.backlog import Backlog
from processor.drain.due_work import DueWork
from processor.drain.gate import Gate
from processor.drain.maintenance import Maintenance
from processor.drain.park import Parker
from processor.drain.prefetch import Prefetch
from processor.drain.settle import PendingSettlement, Settler
from processor.drain.settle_replicated import ReplicatedSettling
from processor.drain.state_publisher import StatePublisher
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
from processor.replicas.watch import ReplicaWatch
from processor.telemetry import metrics
from processor.telemetry.progress import Progress
from processor.telemetry.status import Server, State

log = logging.getLogger("processor.drain")

#: Seconds after which the batches of a pass make room for its other steps; one batch always runs.
_BUDGET = 1.0
#: A reply of Redis may have so many times the bytes of a batch; what is larger is read cut short.
_BATCHES = 4
_SMALLEST_LIMIT = 1_048_576
#: An answer or a failure of PostgreSQL holds for so many seconds.
_KNOWN = 4.0


class Drain:
    """Drains the lanes of one processor; used by one thread."""

    def __init__(
        self, settings: Settings, instance: str, progress: Progress, stopping: Callable[[], bool],
        watch: ReplicaWatch | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._stopping = stopping
        self.gate = Gate()
        self.database = PostgresSession(
            settings.database, progress, application=f"processor {instance}"
        )
        limit = max(_SMALLEST_LIMIT, _BATCHES * settings.batch.bytes)
        self.redis = redis = RedisConnection(settings.redis.url, settings.redis.timeout, limit)
        self.owners = Owners(settings, instance)
        self._watch = watch = watch or ReplicaWatch(settings, instance, lambda: None)
        self._committer = Committer(
            self.database, settings.database, watch.marks if watch.tracks else None
        )
        self._connector = Connector(settings, self._committer, redis, self.owners, watch)
        self._applier = Applier(self._committer, settings)
        self._attempts = Attempts(settings, self._committer, self._applier, redis)
        writer = DeadLetterWriter(self._committer, hold=settings.dead_letter.hold == "named")
        self._replicated = ReplicatedSettling(redis, watch)
        self._settler = Settler(settings, redis, writer, self._replicated, Parker(redis))
        self._admission = Admission(self.database, redis, self._settler, self._replicated)
        self._due_work = DueWork(
            settings, self.database, redis, self._admission, self._attempts, self._settler,
            self._replicated,
        )  # fmt: skip
        self._prefetch = Prefetch(settings, redis, self._replicated)
        self._backlog = Backlog(settings, redis, self.owners)
        self._maintenance = Maintenance(
            settings, self.database, redis, self.owners, writer, self._backlog)  # fmt: skip
        self._publisher = StatePublisher(
            settings, redis, self.owners, self._backlog, watch, self.gate, progress, instance
        )
        self._last_run: float | None = None
        self._postgres_failed = float("-inf"), ""
        #: The settlement of the last batch, if it is left to be done during the next batch.
        self._pending: PendingSettlement | None = None
        self._releasing = False

    # The pass.

    def run(self, now: float) -> float:
        """Run one pass, begun at `now` (monotonic); return the seconds to wait before the next."""
        metrics.count("passes")
        crashpoint.reach("pass-start")
        if self.gate.wait(now) > 0:
            return self.gate.wait(now)
        if self.gate.is_shut:
            log.debug("outage: probing the servers")
        try:
            if self._connector.connect(now):
                self._attempts.answered = True
            self._backlog.measure_if_due(time.monotonic())
            if self._backlog.went_back:
                self._due_work.hasten(self.owners.owned, self._backlog.went_back, self._clock)
                self._backlog.went_back = 0.0
            self._drain(now)
            self._maintenance.run(time.monotonic(), busy=self._work_left())
            self._due_work.look(
                self._open_lanes(), time.monotonic(), self._clock, busy=self._work_left()
            )
            self._end_outage(now)
            self._last_run = time.time()
            # Also with work left: pauses and due times are learned from this call.
            delay = self._backlog.delay(time.monotonic())
            return 0.0 if self._work_left() else delay
        except Unavailable as error:
            self._outage(error)
        except RedisRefused as error:
            self._outage(_unavailable(error))
        except DatabaseError as error:
            # An error reply outside a batch. The next session checks schema and lanes first.
            self.database.close()
            self._outage(_unavailable(error))
        return self.gate.wait(time.monotonic())

    @property
    def _clock(self) -> float:
        """The time by the clock of Redis, Unix seconds; nothing waits by another one (rule 82)."""
        return self._backlog.redis_time(time.monotonic())

    def _drain(self, now: float) -> None:
        """Do what is due, then batch after batch until nothing is left or the budget is spent."""
        self._due_work.move_delayed(self._open_lanes(), self._clock)
        self._due_work.retry_held(self.owners.owned, self._clock)
        # Once at the start of each pass, also while the streams never run empty.
        self._due_work.retry_parked(self._open_lanes(), self._clock)
        self._prefetch.rewind(self.owners.owned)
        self._prefetch.fill(self._open_lanes())
        while not self._stopping():
            lane = self._prefetch.choose(self._open_lanes())
            if lane is not None:
                self._batch(lane)
            elif not self._due_work.retry_parked(self._open_lanes(), self._clock):
                break
            self._prefetch.fill(self._open_lanes())
            if time.monotonic() > now + _BUDGET:
                break
        self._finish_settling()

    def _batch(self, lane: OwnedLane) -> None:
        """Apply and settle the page that was read from a lane."""
        page = lane.cursor.take_page()
        assert page is not None
        crashpoint.reach("batch-decoded")
        if page.unreadable:
            self._settler.file_unreadable(lane, page.unreadable, page.generation)
        if not page.entries:
            return
        entries, others = self._admission.admit(lane, page)
        outcome: Outcome | None = Outcome()
        if entries:
            decision = self._attempts.attempt(lane, entries, page.prerendered, self._meanwhile)
            outcome = carry_out(decision, lane)
        if outcome is None:
            return
        outcome.held += others.held
        outcome.paused += others.paused
        outcome.placed += others.placed
        outcome.clashing += others.clashing
        self._finish_settling()
        pending = self._settler.begin(lane, outcome, page, self._clock)
        if pending.settlement.touches_keys or lane.parking.has_lines:
            self._settler.finish(pending)
            self._due_work.retry_parked(self._open_lanes(), self._clock)
        else:
            # No later entry depends on it: PostgreSQL can work on the next batch meanwhile.
            self._pending = pending

    def _meanwhile(self) -> None:
        """While PostgreSQL works: settle the batch before, read ahead, render ahead."""
        self._finish_settling()
        self._prefetch.fill(self._open_lanes())
        for lane in self._open_lanes():
            page = lane.cursor.page
            if page is not None and page.prerendered is None:
                page.prerendered = self._applier.prerender(page.entries)

    def _finish_settling(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._settler.finish(pending)
        # Each lane has its turn, whatever the one before it answers.
        self._releasing = sum(map(self._replicated.release, self.owners.owned)) > 0

    def _open_lanes(self) -> list[OwnedLane]:
        """The owned lanes that are not paused, and have room for what they hold."""
        now = time.monotonic()
        limit = self._settings.buffer.limit
        return [
            lane for lane in self.owners.owned
            if lane.health.paused_until <= now and lane.lane.queue not in self._backlog.paused
            and not (lane.alike.pauses and lane.parking.records >= limit)
        ]  # fmt: skip

    def _work_left(self) -> bool:
        return self._releasing or any(x.cursor.page is not None for x in self._open_lanes())

    # Outages.

    def _outage(self, error: Unavailable) -> None:
        """A server is unavailable: no attempt is spent, nothing read is trusted (P4, rule 9)."""
        now = time.monotonic()
        stale = self._connector.session_is_old and not self.database.alive
        lasted = 0.0 if self.gate.since is None else now - self.gate.since
        if not self.gate.is_shut:
            metrics.count("outages")
        status = "misconfigured" if error.misconfigured else "outage"
        if self.gate.shut(now, str(error), jitter=random.random(), stale=stale, status=status):
            log.warning("%s%s: %s", status, f" for {lasted:.0f} s" if lasted else "", error)
        else:
            log.debug("%s continues: %s", status, error)
        if isinstance(error, RedisUnavailable):
            self.redis.close()
        else:
            self._postgres_failed = now, str(error)
            if self.database.alive and not self.database.idle:
                self.database.close()
        for lane in self.owners.lanes.values():
            if isinstance(error, RedisUnavailable):
                lane.forget()
            else:
                lane.read_again()
        self._pending = None
        self._backlog.measure_soon()
        self._connector.forget()

    def _end_outage(self, now: float) -> None:
        lasted = self.gate.open(now)
        if lasted is not None:
            log.warning("outage over after %.1f s", lasted)

    # For the thread, between passes.

    def streams(self) -> dict[str, str]:
        """Where the doorbell waits: the last entry id that was read, by stream."""
        if self.gate.is_shut:
            return {}
        return {lane.lane.stream: lane.cursor.doorbell for lane in self._open_lanes()}

    def postgres(self, now: float) -> Server | None:
        """What is known of PostgreSQL at `now` (monotonic), None if it was not asked lately.

        The observer asks in its own thread.
        """
        answered, (failed, why) = self.database.last_call, self._postgres_failed
        if now - max(answered, failed) >= _KNOWN:
            return None
        return Server(True) if answered > failed else Server(False, why)

    def state(self) -> State:
        """Return the state of the processor; writes nothing."""
        counts = self._maintenance
        return self._publisher.build(self._last_run, counts.dead_letters, counts.counted_at)

    def publish(self, state: State) -> None:
        """Publish a state for other processes, as far as Redis is reachable."""
        self._publisher.publish(state)

    def leave(self, *, ends: bool = True) -> None:
        """Give up the lanes and close both connections.

        `ends` says that the processor stops; otherwise a pass failed, and the next one connects
        again.
        """
        # It belongs to lanes that are given up: what it did not settle is found in the ledger.
        self._pending = None
        try:
            if self.database.idle:
                self.owners.give_up(self.database)
            else:
                self.owners.lose()
            if not ends:
                self.publish(self.state())
            elif self.redis.alive:
                self._publisher.publish_stopped()
        except (Unavailable, DatabaseError):
            log.info("the lanes could not be released one by one; closing the session releases"
                     " them")  # fmt: skip
        finally:
            self.database.close()
            self.redis.close()


def _unavailable(error: RedisRefused | DatabaseError) -> Unavailable:
    """The outage that an error reply outside a batch is."""
    kind = RedisUnavailable if isinstance(error, RedisRefused) else DatabaseUnavailable
    made = kind(str(error))
    made.misconfigured = error.refuses_rights
    return made
