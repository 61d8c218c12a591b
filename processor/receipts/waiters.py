"""The waiters for transactions of one lane, indexed by transaction id and entry id (P8).

A note concerns the waiters that it names and those whose entries lie in its range. A waiter that
wants more than the commit stays until enough replicas have it.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Mapping

from processor.buffer.commit_notes import Note
from processor.buffer.entry_ids import sortable
from processor.connections.wal_position import Position
from processor.receipts.redis_lookup import from_note
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import StatusLookup, Target, on_replicas

#: Whether a commit has come far enough, given its status and how far the replicas are.
Enough = Callable[[StatusLookup, ReplicaProgress], bool]


class Waiter:
    """Waits for a transaction until it is committed, or until `enough` replicas have it."""

    __slots__ = ("_event", "commit", "enough", "order", "result", "target")

    def __init__(self, target: Target, enough: Enough | None = None) -> None:
        self.target = target
        self.enough = enough
        self.order = sortable(target.entry_id) if target.entry_id else b""
        #: The status of the commit that the replicas must have.
        self.commit: StatusLookup | None = None
        #: The status that ended the wait.
        self.result: StatusLookup | None = None
        self._event = threading.Event()

    def read(self, note: Note) -> StatusLookup | None:
        """Return what a note says of this waiter's transaction."""
        if note.buffer != self.target.buffer:
            return None
        outcome = note.outcome_of(self.target.id, self.target.entry_id)
        return from_note(outcome) if outcome else None

    def finish(self, result: StatusLookup) -> None:
        """End the wait with a status."""
        self.result = result
        self._event.set()

    def wake(self) -> None:
        """Wake the waiter, so that it queries the status itself."""
        self._event.set()

    def wait(self, timeout: float | None) -> StatusLookup | None:
        """Wait at most `timeout` seconds; None after a timeout, or if the waiter was only woken."""
        self._event.wait(timeout)
        self._event.clear()
        return self.result


class Waiters:
    """The waiters of one lane. The caller makes sure that one thread at a time uses it."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[Waiter]] = {}
        self._in_order: list[tuple[bytes, int, Waiter]] = []
        self._committed: dict[int, Waiter] = {}
        self._progress: ReplicaProgress | None = None
        #: How many of them wait for replicas.
        self.for_replicas = 0

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def add(self, waiter: Waiter) -> None:
        """Add a waiter; from now on notes reach it."""
        self.for_replicas += waiter.enough is not None
        self._by_id.setdefault(waiter.target.id, []).append(waiter)
        if waiter.order:
            bisect.insort(self._in_order, (waiter.order, id(waiter), waiter))

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter that is finished or gave up."""
        self.for_replicas -= waiter.enough is not None
        self._committed.pop(id(waiter), None)
        same = self._by_id[waiter.target.id]
        same.remove(waiter)
        if not same:
            del self._by_id[waiter.target.id]
        if waiter.order:
            del self._in_order[bisect.bisect_left(self._in_order, (waiter.order, id(waiter)))]

    def read(self, note: Note) -> list[tuple[Waiter, StatusLookup]]:
        """Return the waiters that a note finishes, each with its result."""
        finished = []
        for waiter in self.concerned(note):
            status = waiter.read(note)
            if status is not None:
                result = self.record_commit(waiter, status, newest=True)
                finished += [(waiter, result)] if result else []
        return finished

    def concerned(self, note: Note) -> list[Waiter]:
        """Return the waiters for which a note may have an answer."""
        named = (*note.also, *note.dead, *note.discarded)
        found = [waiter for i in named for waiter in self._by_id.get(i, ())]
        span = note.entries.span
        if span:
            first, last = map(sortable, span)
            start = bisect.bisect_left(self._in_order, (first,))
            end = bisect.bisect_left(self._in_order, (last + b"~",))
            found += [waiter for _, _, waiter in self._in_order[start:end]]
        return found

    def record_commit(
        self, waiter: Waiter, status: StatusLookup, *, newest: bool = False,
        servers: Mapping[str, str] | None = None,
    ) -> StatusLookup | None:  # fmt: skip
        """Record the status of a waiter's transaction; return its result once it has one.

        `newest` marks the status of a note. A status that was looked up may be older than a note
        that was read, and on another timeline. `servers` are the servers of the replicas at the
        time of the look-up.
        """
        if servers is not None and self._progress and self._progress.servers != servers:
            # A name was given to another server, and the report of that has not been read yet.
            self._progress = None
        if waiter.enough is None or status.state not in ("committed", "replicated"):
            return status
        if newest or status.position is None or not _same_log(waiter.commit, status.position):
            waiter.commit = status
        self._committed[id(waiter)] = waiter
        progress = self._progress
        if progress is not None and newest and not progress.watched(time.time()):
            # No watch would report the rest; the waiter will notice, and query now and then.
            waiter.wake()
        return self._result(waiter, {})

    def record_progress(self, progress: ReplicaProgress) -> list[tuple[Waiter, StatusLookup]]:
        """Record how far the replicas are; return the waiters finished by it, with results."""
        before, self._progress = self._progress, progress
        if before is not None and before.primary != progress.primary:
            for waiter in self._committed.values():
                waiter.wake()
        if before == progress:
            return []
        furthest = max((position.lsn for position in progress.positions.values()), default=0)
        finished, having = [], dict[Position, dict[str, bool]]()
        for waiter in self._committed.values():
            if _lsn(waiter) <= furthest or not progress.awaited:
                result = self._result(waiter, having)
                finished += [(waiter, result)] if result else []
        return finished

    def forget_progress(self) -> None:
        """Forget how far the replicas are: from now on it is not read."""
        self._progress = None

    def _result(
        self, waiter: Waiter, having: dict[Position, dict[str, bool]]
    ) -> StatusLookup | None:
        """Return the result of a waiter if enough replicas have its commit.

        `having` keeps which replicas have which position, for many waiters in a row.
        """
        progress, commit = self._progress, waiter.commit
        if progress is None or commit is None or commit.position is None or waiter.enough is None:
            return None
        replicas = having.get(commit.position)
        if replicas is None:
            replicas = having[commit.position] = progress.having(commit.position)
        status = on_replicas(commit, replicas, progress.awaited)
        return status if waiter.enough(status, progress) else None


def _lsn(waiter: Waiter) -> int:
    commit = waiter.commit
    return commit.position.lsn if commit and commit.position else 0


def _same_log(commit: StatusLookup | None, position: Position) -> bool:
    return bool(commit and commit.position and commit.position.comparable(position))
