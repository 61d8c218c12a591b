"""One attempt at a batch of a lane, and what it teaches about the lane.

`apply` returns what became of the entries. Here failures of single transactions are separated from
those of the lane: another owner, contention, a failure common to all transactions, a transaction
that ends its session. An attempt returns a decision; `carry_out` does to the lane what it says.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from processor.apply.applier import Applier, BatchText
from processor.apply.committer import Committer
from processor.apply.outcome import Contended, Fenced, Outcome
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import ENDS_SESSION_STATE, DatabaseUnavailable, Unavailable
from processor.ledger import lane_rows, outcomes
from processor.ledger.dead_letters import Reason
from processor.ownership.failing_alike import SYSTEMIC, KindPause, in_words
from processor.ownership.owned_lane import OwnedLane
from processor.telemetry import metrics
from processor.transaction.entry import Entry

log = logging.getLogger("processor.drain")


@dataclass(frozen=True, slots=True)
class Applied:
    """The batch was applied, or each failure in it is its own transaction's fault: settle it."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """The first transaction crashes its session: read it again, in a batch of its own."""


@dataclass(frozen=True, slots=True)
class LaneLost:
    """Another processor owns the lane, and the fence refused the batch."""


@dataclass(frozen=True, slots=True)
class Paused:
    """No transaction's own fault: leave the lane alone for a while."""

    reason: str


Decision = Applied | ReadAgain | LaneLost | Paused


def carry_out(decision: Decision, lane: OwnedLane) -> Outcome | None:
    """Do to the lane what a decision says; return the outcome to settle, None if there is none."""
    if isinstance(decision, Applied):
        return decision.outcome
    if isinstance(decision, LaneLost):
        log.warning("lane %s: fenced, another processor owns it", lane.name)
        lane.fenced()
        return None
    if isinstance(decision, Paused):
        before = lane.health.reason
        jitter = random.uniform(0.8, 1.0)
        seconds = lane.health.pause(decision.reason, time.monotonic(), jitter)
        if before != decision.reason:
            log.error("lane %s: paused for %.0f s: %s", lane.name, seconds, decision.reason)
    lane.read_again()
    return None


def report(lane: OwnedLane, pause: KindPause, now: float) -> None:
    """Log a paused kind, at `now` (monotonic)."""
    pause.reported = now
    log.error("lane %s: %s", lane.name, in_words(pause.published(now, time.time()), lane.name))


def report_over(lane: OwnedLane, pause: KindPause) -> None:
    """Log the end of a paused kind."""
    kind = pause.kind
    log.warning("lane %s: %s no longer fails with %s: the transactions that were held are applied"
                " now", lane.name, kind.operations, kind.sqlstate)  # fmt: skip


def report_empty(lane: OwnedLane, pause: KindPause) -> None:
    """Log that a paused kind holds nothing any more."""
    log.warning("lane %s: %s: no transactions are held any more", lane.name,
                pause.kind.operations)  # fmt: skip


def report_resumed(lane: OwnedLane, pause: KindPause) -> None:
    """Log that an operator ended the pause of a kind."""
    log.warning("lane %s: resumed by an operator: %s is tried again, and fails if it fails again",
                lane.name, pause.kind.operations)  # fmt: skip


class Attempts:
    """Attempts batches for one processor.

    `answered` says that PostgreSQL answered since a batch last ended the session.
    """

    def __init__(
        self, settings: Settings, committer: Committer, applier: Applier, redis: RedisConnection
    ) -> None:
        self._settings = settings
        self._committer = committer
        self._applier = applier
        self._redis = redis
        self.answered = False

    def attempt(
        self, lane: OwnedLane, entries: list[Entry], prerendered: BatchText | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Decision:  # fmt: skip
        """Apply a batch and decide what its result means. Raises Unavailable and DatabaseError.

        `meanwhile` is called while PostgreSQL works on the batch; what it raises is raised after
        the batch's reply was received.
        """
        assert lane.owner is not None
        if lane.health.condemned == entries[0].id:
            lane.health.acquit()
            if self._is_crasher(lane, entries[0]):
                return _dead_crasher(lane, entries)
        trouble: list[Unavailable] = []
        started = time.monotonic()
        try:
            outcome = self._applier.apply(
                lane.owner, entries, prerendered, meanwhile and _guarded(meanwhile, trouble),
                # A lane that was found blocked is only tried: other lanes wait meanwhile.
                patient=lane.health.pauses == 0,
            )
        except Fenced:
            metrics.count("fenced")
            return LaneLost()
        except Contended as error:
            return Paused(f"contended: {error}")
        except DatabaseUnavailable:
            # The batch itself is suspected only if PostgreSQL answered in between.
            lane.health.session_ended(
                entries, self._settings.retry.attempts, answered=self.answered,
                slow=self._share(started) >= 1.0,
            )  # fmt: skip
            self.answered = False
            raise
        if trouble:
            raise trouble[0]
        return self._judge(lane, entries, outcome, self._share(started))

    def _share(self, started: float) -> float:
        """Return how much of the deadline of a call has passed since `started`; 1.0 is all."""
        return (time.monotonic() - started) / self._settings.database.call_timeout

    def _judge(
        self, lane: OwnedLane, entries: list[Entry], outcome: Outcome, share: float
    ) -> Decision:
        """Separate failures of single transactions from one that all have in common."""
        begun, over = lane.alike.judge(outcome, time.monotonic(), time.time())
        for pause in over:
            report_over(lane, pause)
        before = lane.health.reason
        state = lane.health.batch_taken(entries, outcome, self._settings.batch.entries, share)
        if before and not lane.health.reason:
            log.warning("lane %s: works again; it was paused: %s", lane.name, before)
        if begun or state:
            # An earlier `queues resume` was for an earlier pause.
            self._redis.call("HDEL", f"{self._settings.namespace}:resumed", lane.name)
        for pause in begun:
            report(lane, pause, time.monotonic())
        if not state:
            return Applied(outcome)
        return Paused(f"systemic: SQLSTATE {state} from at least {SYSTEMIC} transactions in a row:"
                      " mend the cause, or let them fail by `processor queues resume`")  # fmt: skip

    def _is_crasher(self, lane: OwnedLane, entry: Entry) -> bool:
        """Whether PostgreSQL commits without this entry, and has never committed it (rule 13, P4).

        A server that answers but cannot commit, such as one that waits for a standby, is an outage.
        """
        assert lane.owner is not None
        self._committer.begin()
        self._committer.commit(lane_rows.fence(lane.owner, 0))
        return not outcomes.find(self._committer.session, [entry.id])


def _dead_crasher(lane: OwnedLane, entries: list[Entry]) -> Decision:
    """The first entry crashes its session: make it a dead letter once it is alone in its batch."""
    if len(entries) > 1:
        # Its neighbours must not share its fate.
        lane.health.judge_alone(entries[0])
        return ReadAgain()
    reason = Reason("crashed its PostgreSQL session on every attempt", ENDS_SESSION_STATE)
    return Applied(Outcome(failed=[(entries[0], reason)]))


def _guarded(meanwhile: Callable[[], None], trouble: list[Unavailable]) -> Callable[[], None]:
    """Keep what `meanwhile` raises: the reply to the batch must be received whatever Redis does."""

    def run() -> None:
        try:
            meanwhile()
        except Unavailable as error:
            trouble.append(error)

    return run
