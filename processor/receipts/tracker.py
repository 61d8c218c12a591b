"""How far transactions got, for all receipts of a process: Redis, ledgers and notes put together.

What a note tells is believed unless its commit is of before a failover: then only what waits in
Redis, or the ledger of the primary of now, can tell whether it is still true (rule 22).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection, RedisPool
from processor.connections.shared import Shared
from processor.connections.wal_position import Position
from processor.errors import DatabaseUnavailable, InvalidTransaction, RedisRefused, RedisUnavailable
from processor.receipts import status as whereabouts
from processor.receipts.ledger_sessions import LedgerSessions
from processor.receipts.note_listener import NoteListener
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import UNKNOWN, Seen, Sought, StatusLookup, on_replicas
from processor.receipts.waiters import Enough, Waiter

T = TypeVar("T")

#: A waiter that heard nothing looks for itself, less and less often: a full Redis refuses notes.
_LOOK = 2.0
_LOOK_LEAST = 30.0
#: Where nobody follows the replicas, or no note tells where the commit is, nothing is heard.
_LOOK_UNHEARD = 1.0
#: Threads that ask Redis at the same time: a thousand would leave the drain thread no turn.
_ASKING = 4
#: Positions of commits that no note tells any more, remembered so that they do not move away.
_BOUNDS = 10_000


class Tracker:
    """Answers for all receipts of a process, by one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledgers = LedgerSessions(settings)
        self._pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._watcher = NoteListener(settings)
        self._asking = threading.BoundedSemaphore(_ASKING)
        self._lock = threading.Lock()
        self._bounds: dict[str, Position] = {}

    def status(self, sought: Sought) -> StatusLookup:
        """How far a transaction got, and on which replicas it is."""
        return self._answer(sought, self._seen(sought), replicas=True)

    def look(self, sought: Sought) -> tuple[StatusLookup, ReplicaProgress]:
        """How far a transaction got, with what is told of the replicas."""
        seen = self._seen(sought)
        return self._answer(sought, seen, replicas=True), seen.confirmation

    def wait(
        self, sought: Sought, timeout: float | None, enough: Enough | None = None
    ) -> StatusLookup:
        """Wait for the end of a transaction, or until its commit has come far enough.

        Hears of it; looks now and then in case nothing is told.
        """
        end = None if timeout is None else time.monotonic() + timeout
        waiter = Waiter(sought, enough)
        look, seen = _LOOK, None
        with self._watcher.waiting(waiter, self._last_note):
            while True:
                # Asked after the watcher listens: a note is either found here or heard there.
                seen = self._seen(sought, seen)
                reached = self._answer(sought, seen, replicas=enough is not None)
                if _ends(reached, seen.confirmation, enough):
                    return reached
                if enough and reached.decided:
                    self._watcher.committed(waiter, reached, seen.confirmation.servers)
                    if self._unheard(reached, seen):
                        look = min(look, _LOOK_UNHEARD)
                # Not all at once: those who came together would look together for ever.
                left = look * random.uniform(0.7, 1.0)
                left = left if end is None else min(left, end - time.monotonic())
                look = min(_LOOK_LEAST, look * 2)
                told = waiter.wait(left) if left > 0 else waiter.told
                if told is not None or left <= 0:
                    return told or reached

    # What Redis tells.

    def _seen(self, sought: Sought, before: Seen | None = None, since: str = "-") -> Seen:
        since = before.newest if before else since
        seen = self._ask(
            lambda redis: whereabouts.in_redis(redis, sought, self.settings.replicas, since)
        )
        return replace(seen, told=seen.told or before.told) if before else seen

    def _last_note(self, lane: Lane) -> str:
        return self._ask(lambda redis: whereabouts.last_note(redis, lane))

    def _ask(self, question: Callable[[RedisConnection], T]) -> T:
        with self._asking:
            connection = self._pool.take()
            try:
                return question(connection)
            except RedisRefused as refused:
                raise RedisUnavailable(f"Redis cannot be asked: {refused}") from None
            finally:
                self._pool.give(connection)

    # What it means.

    def _answer(self, sought: Sought, seen: Seen, *, replicas: bool) -> StatusLookup:
        told, waiting = seen.told, seen.waiting
        if told is not None and not self._doubtful(told, seen, replicas):
            return self._replicated(sought, told, seen, replicas) if told.decided else told
        if waiting is not None and not self._may_be_committed(sought, waiting):
            return waiting
        try:
            known, here = self._in_ledger(sought, seen)
        except DatabaseUnavailable:
            found = self._unconfirmed(sought, seen, replicas)
            if found is None:
                raise
            return found
        if known is not None:
            if known.state == "committed":
                known = self._placed(sought, known, told, here)
            return self._replicated(sought, known, seen, replicas)
        if waiting is not None or told is None:
            return waiting or (UNKNOWN if sought.entry_id else _DELAYED)
        return self._replicated(sought, self._lost(told, here), seen, replicas)

    def _unconfirmed(self, sought: Sought, seen: Seen, replicas: bool) -> StatusLookup | None:
        """What can be said without the ledger of the primary."""
        # Searched anew as far back as notes go: Redis's clock may have been set back.
        found = seen.told or seen.waiting or self._seen(sought, since="0-0").told
        if found is None or seen.confirmation.left_behind(found.position):
            return found
        return self._replicated(sought, found, seen, replicas)

    def _doubtful(self, told: StatusLookup, seen: Seen, replicas: bool) -> bool:
        """Whether the ledger has to confirm a note: after a failover, or if nobody would tell."""
        found = seen.confirmation
        unwatched = replicas and bool(found.replicas) and not found.watched(time.time())
        return told.state == "committed" and (found.left_behind(told.position) or unwatched)

    def _may_be_committed(self, sought: Sought, waiting: StatusLookup) -> bool:
        """Whether an entry may be committed although no note tells so.

        Where entries stay in the stream until they are replicated, their notes may be gone first.
        """
        if waiting.state != "accepted" or self.settings.settle != "replicated":
            return False
        return self._ask(lambda redis: whereabouts.outlives_notes(redis, sought))

    def _in_ledger(self, sought: Sought, seen: Seen) -> tuple[StatusLookup | None, Position]:
        return self.ledgers.on_primary(
            lambda database: whereabouts.in_ledger(database, sought.id), seen.confirmation.primary
        )

    def _placed(
        self, sought: Sought, known: StatusLookup, told: StatusLookup | None, here: Position
    ) -> StatusLookup:
        """A commit that the ledger knows, with its position: of its note, else an upper bound."""
        if told is not None and told.position is not None and told.position.comparable(here):
            return told
        with self._lock:
            bound = self._bounds.get(sought.id)
            if bound is None or not bound.comparable(here):
                bound = self._bounds[sought.id] = here
                if len(self._bounds) > _BOUNDS:
                    del self._bounds[next(iter(self._bounds))]
        return replace(known, position=bound)

    def _lost(self, told: StatusLookup, here: Position) -> StatusLookup:
        position, at = told.position, told.at or 0.0
        forgotten = time.time() - at >= self.settings.ledger.retention
        if position is None or position.comparable(here) or forgotten:
            return told
        where = f"timeline {position.timeline}"
        if position.system != here.system:
            where = f"server {position.system}"
        return replace(
            told, state="lost", reason=f"committed on {where}, which a failover left behind"
        )

    def _replicated(
        self, sought: Sought, reached: StatusLookup, seen: Seen, replicas: bool
    ) -> StatusLookup:
        """A commit with the replicas that have it: by what is told, else by their own ledgers."""
        found, settings = seen.confirmation, self.settings.replicas
        if reached.state != "committed" or not (replicas and settings.tracking and found.replicas):
            return reached
        having = found.having(reached.position)
        watched = found.watched(time.time())
        for name in self._unheard(reached, seen) if settings.servers else ():
            if not having[name] or name not in watched:
                # What nobody watches may be another server by now: it is asked, if it can be.
                shown = self.ledgers.on_replica(name, sought.id)
                having[name] = having[name] if shown is None else shown
        return on_replicas(reached, having, found.awaited)

    def _unheard(self, reached: StatusLookup, seen: Seen) -> list[str]:
        """The replicas of which nobody will tell: they are not followed, or no note told where."""
        found, now = seen.confirmation, time.time()
        noted = seen.told is not None and seen.told.position == reached.position
        heard = found.watched(now) if noted else set()
        return [name for name in found.readable(now) if name not in heard]

    def close(self) -> None:
        """Close what nobody uses at the moment."""
        self._watcher.close()
        self._pool.close()
        self.ledgers.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        self._watcher.forget()
        self._pool.drop()
        self.ledgers.drop()
        self._asking = threading.BoundedSemaphore(_ASKING)
        self._lock = threading.Lock()


def everywhere(reached: StatusLookup, found: ReplicaProgress) -> bool:
    """Enough for `replicated`: on all replicas that count; on none is enough if all are lost."""
    return reached.state == "replicated" or bool(found.replicas and not found.awaited)


def _ends(reached: StatusLookup, found: ReplicaProgress, enough: Enough | None) -> bool:
    """Whether there is nothing left to wait for.

    Raises InvalidTransaction if no replica is known; by the time of a commit one would be.
    """
    if enough is None or reached.state not in ("committed", "replicated"):
        return reached.decided
    if not found.replicas:
        raise InvalidTransaction(
            "until", "there is no replica to wait for",
            hint="name them in replicas.servers, or let the role of database.dsn see"
            " pg_stat_replication (GRANT pg_monitor)",
        )  # fmt: skip
    return enough(reached, found)


_DELAYED = StatusLookup("scheduled")
_shared = Shared(Tracker)
current, close = _shared.current, _shared.close
