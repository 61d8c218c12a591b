"""How far transactions got, for all receipts of a process: Redis, ledgers and notes put together.

A note is believed unless its commit was made before a failover. Then only what still waits in
Redis, or the ledger of the current primary, can say whether the note is still true (rule 22).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.connections.redis_pool import RedisPool
from processor.connections.shared import Shared
from processor.connections.wal_position import Position
from processor.errors import DatabaseUnavailable, InvalidTransaction, RedisRefused, RedisUnavailable
from processor.receipts import redis_lookup
from processor.receipts.ledger_sessions import LedgerSessions, in_ledger, lost_entry
from processor.receipts.note_listener import NoteListener
from processor.receipts.redis_lookup import RedisAnswer
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import UNKNOWN, StatusLookup, Target, on_replicas
from processor.receipts.waiters import Enough, Waiter

log = logging.getLogger("processor.receipts")

T = TypeVar("T")

#: A waiter that no note reached queries the status itself, at growing intervals (seconds): a full
#: Redis refuses notes.
_QUERY_AFTER = 2.0
_QUERY_AFTER_MOST = 30.0
#: The interval if no report is to be expected: no watch follows the replicas, or no note has the
#: position of the commit.
_QUERY_AFTER_UNREPORTED = 1.0
#: Threads that ask Redis at the same time: a thousand would leave the drain thread no CPU time.
_ASKING = 4
#: How many positions without a note are remembered, so that repeated questions get the same one.
_BOUNDS = 10_000

_SCHEDULED = StatusLookup("scheduled")


class Tracker:
    """Answers for all receipts of a process, by one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledgers = LedgerSessions(settings)
        self._pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._listener = NoteListener(settings)
        self._asking = threading.BoundedSemaphore(_ASKING)
        self._lock = threading.Lock()
        self._bounds: dict[str, Position] = {}

    def status(self, target: Target) -> StatusLookup:
        """Return how far a transaction got, and which replicas have it.

        Raises RedisUnavailable, and DatabaseUnavailable if only the ledger could tell.
        """
        return self._answer(target, self._ask_redis(target), replicas=True)

    def status_and_progress(self, target: Target) -> tuple[StatusLookup, ReplicaProgress]:
        """Return the status of a transaction, and how far the replicas are. Raises as `status`."""
        answer = self._ask_redis(target)
        return self._answer(target, answer, replicas=True), answer.progress

    def wait(
        self, target: Target, timeout: float | None, enough: Enough | None = None
    ) -> StatusLookup:
        """Wait for the end of a transaction, or until enough replicas have its commit.

        Notes and reports end the wait; now and then the status is queried, in case none comes.
        Raises as `status`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        waiter = Waiter(target, enough)
        interval, answer = _QUERY_AFTER, None
        with self._listener.waiting(waiter, self._last_note):
            while True:
                # Asked after the listener reads: a note is either found here or read there.
                answer = self._ask_redis(target, answer)
                status = self._answer(target, answer, replicas=enough is not None)
                if _ends(status, answer.progress, enough):
                    return status
                if enough and status.decided:
                    self._listener.record_commit(waiter, status, answer.progress.servers)
                    if self._unreported(status, answer):
                        interval = min(interval, _QUERY_AFTER_UNREPORTED)
                # Jittered: waiters that came together would otherwise query together every time.
                left = interval * random.uniform(0.7, 1.0)
                left = left if end is None else min(left, end - time.monotonic())
                interval = min(_QUERY_AFTER_MOST, interval * 2)
                result = waiter.wait(left) if left > 0 else waiter.result
                if result is not None or left <= 0:
                    return result or status

    def wait_replicated(self, target: Target, timeout: float | None) -> StatusLookup:
        """Wait until all replicas that count have a commit. Raises as `wait`, and
        InvalidTransaction if there are none to wait for."""
        if not self.settings.replicas.tracking:
            raise InvalidTransaction(
                "until", "replicas are not followed", hint="set replicas.tracking to true"
            )
        return self.wait(target, timeout, everywhere)

    # What Redis knows.

    def _ask_redis(
        self, target: Target, before: RedisAnswer | None = None, since: str = "-"
    ) -> RedisAnswer:
        since = before.newest if before else since
        answer = self._with_redis(
            lambda redis: redis_lookup.look_up(redis, target, self.settings.replicas, since)
        )
        return replace(answer, noted=answer.noted or before.noted) if before else answer

    def _last_note(self, lane: Lane) -> str:
        return self._with_redis(lambda redis: redis_lookup.last_note(redis, lane))

    def _with_redis(self, question: Callable[[RedisConnection], T]) -> T:
        with self._asking:
            try:
                return self._pool.ask(question)
            except RedisRefused as refused:
                raise RedisUnavailable(f"cannot look up the transaction: {refused}") from None

    # What it means.

    def _answer(self, target: Target, answer: RedisAnswer, *, replicas: bool) -> StatusLookup:
        noted, waiting = answer.noted, answer.waiting
        if noted is not None and not self._is_doubtful(noted, answer, replicas):
            return self._on_replicas(target, noted, answer, replicas) if noted.decided else noted
        if waiting is not None and not self._may_be_committed(target, waiting):
            return waiting
        log.debug("transaction %s: querying the ledger", target.id)
        try:
            known, here = self._ask_ledger(target, answer)
        except DatabaseUnavailable as error:
            log.debug("transaction %s: the ledger is unavailable: %s", target.id, error)
            found = self._without_ledger(target, answer, replicas)
            if found is None:
                raise
            return found
        if known is not None:
            if known.state == "committed":
                known = self._with_position(target, known, noted, here)
            return self._on_replicas(target, known, answer, replicas)
        if waiting is not None or noted is None:
            return waiting or (UNKNOWN if target.entry_id else _SCHEDULED)
        return self._on_replicas(target, self._as_lost(noted, here), answer, replicas)

    def _without_ledger(
        self, target: Target, answer: RedisAnswer, replicas: bool
    ) -> StatusLookup | None:
        """Return what can be said while the ledger of the primary is unavailable."""
        # Search again as far back as notes go: the clock of Redis may have been set back.
        found = answer.noted or answer.waiting or self._ask_redis(target, since="0-0").noted
        if found is None or answer.progress.predates_failover(found.position):
            return found
        return self._on_replicas(target, found, answer, replicas)

    def _is_doubtful(self, noted: StatusLookup, answer: RedisAnswer, replicas: bool) -> bool:
        """Whether the ledger must confirm a note: after a failover, or if no watch runs."""
        progress = answer.progress
        unwatched = replicas and bool(progress.replicas) and not progress.watched(time.time())
        return noted.state == "committed" and (
            progress.predates_failover(noted.position) or unwatched
        )

    def _may_be_committed(self, target: Target, waiting: StatusLookup) -> bool:
        """Whether an entry may be committed although no note says so.

        Where entries stay in the stream until they are replicated, their notes may expire first.
        """
        if waiting.state != "accepted" or self.settings.settle != "replicated":
            return False
        return self._with_redis(lambda redis: redis_lookup.outlives_notes(redis, target))

    def _ask_ledger(
        self, target: Target, answer: RedisAnswer
    ) -> tuple[StatusLookup | None, Position]:
        def question(database: PostgresSession) -> StatusLookup | None:
            known = in_ledger(database, target.id)
            if known is None and answer.noted is None and answer.waiting is None:
                return lost_entry(database, target)
            return known

        return self.ledgers.on_primary(question, answer.progress.primary)

    def _with_position(
        self, target: Target, known: StatusLookup, noted: StatusLookup | None, here: Position
    ) -> StatusLookup:
        """Add the position to a commit from the ledger: that of its note, else an upper bound."""
        if noted is not None and noted.position is not None and noted.position.comparable(here):
            return noted
        with self._lock:
            bound = self._bounds.get(target.id)
            if bound is None or not bound.comparable(here):
                bound = self._bounds[target.id] = here
                if len(self._bounds) > _BOUNDS:
                    del self._bounds[next(iter(self._bounds))]
        return replace(known, position=bound)

    def _as_lost(self, noted: StatusLookup, here: Position) -> StatusLookup:
        """Return a noted commit as lost, if the ledger at `here` would still have it otherwise."""
        position, at = noted.position, noted.at or 0.0
        pruned = time.time() - at >= self.settings.ledger.retention
        if position is None or position.comparable(here) or pruned:
            return noted
        where = f"timeline {position.timeline}"
        if position.system != here.system:
            where = f"server {position.system}"
        return replace(noted, state="lost", reason=f"committed on {where}, lost in a failover")

    def _on_replicas(
        self, target: Target, status: StatusLookup, answer: RedisAnswer, replicas: bool
    ) -> StatusLookup:
        """Add the replicas that have a commit: as reported, else by their own ledgers."""
        progress, settings = answer.progress, self.settings.replicas
        counts = replicas and settings.tracking and progress.replicas
        if status.state != "committed" or not counts:
            return status
        having = progress.having(status.position)
        watched = progress.watched(time.time())
        for name in self._unreported(status, answer) if settings.servers else ():
            if not having[name] or name not in watched:
                # A name that no watch follows may belong to another server by now: ask that one.
                shown = self.ledgers.on_replica(name, target.id)
                having[name] = having[name] if shown is None else shown
        return on_replicas(status, having, progress.awaited)

    def _unreported(self, status: StatusLookup, answer: RedisAnswer) -> list[str]:
        """Return the replicas for which no report will come.

        No watch follows them, or no note has the position of the commit.
        """
        progress, now = answer.progress, time.time()
        has_note = answer.noted is not None and answer.noted.position == status.position
        reported = progress.watched(now) if has_note else set()
        return [name for name in progress.readable(now) if name not in reported]

    def close(self) -> None:
        """Close the connections that are not in use; the next question opens others."""
        self._listener.close()
        self._pool.close()
        self.ledgers.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        self._listener.drop()
        self._pool.drop()
        self.ledgers.drop()


def everywhere(status: StatusLookup, progress: ReplicaProgress) -> bool:
    """Whether a wait for all replicas that count is over: also if all of them are lost."""
    return status.state == "replicated" or bool(progress.replicas and not progress.awaited)


def _ends(status: StatusLookup, progress: ReplicaProgress, enough: Enough | None) -> bool:
    """Whether there is nothing left to wait for.

    Raises InvalidTransaction if no replica is known; by the time of a commit one would be.
    """
    if enough is None or status.state not in ("committed", "replicated"):
        return status.decided
    if not progress.replicas:
        raise InvalidTransaction(
            "until", "there is no replica to wait for",
            hint="name them in replicas.servers, or let the role of database.dsn see"
            " pg_stat_replication (GRANT pg_monitor)",
        )  # fmt: skip
    return enough(status, progress)


_shared = Shared(Tracker)
current, close = _shared.current, _shared.close
