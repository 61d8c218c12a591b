"""Those who wait for transactions of one lane, so kept that what is heard finds its own (P8).

A note concerns those whom it names and those whose entries lie in its range. Whoever waits for more
than the commit stays until the replicas told of have enough.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Mapping

from processor.buffer.commit_notes import Note
from processor.buffer.entry_ids import sortable
from processor.connections.wal_position import Position
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import Sought, StatusLookup, from_told, on_replicas

#: Whether a commit has come far enough, given on which replicas it is and what is told of them.
Enough = Callable[[StatusLookup, ReplicaProgress], bool]


class Waiter:
    """Somebody who waits for a transaction: until it is committed, or until there is `enough`."""

    __slots__ = ("_event", "enough", "order", "reached", "sought", "told")

    def __init__(self, sought: Sought, enough: Enough | None = None) -> None:
        self.sought = sought
        self.enough = enough
        self.order = sortable(sought.entry_id) if sought.entry_id else b""
        #: The commit from which on replicas count.
        self.reached: StatusLookup | None = None
        self.told: StatusLookup | None = None
        self._event = threading.Event()

    def hear(self, note: Note) -> StatusLookup | None:
        """What a note says to this waiter."""
        if note.buffer != self.sought.buffer:
            return None
        told = note.tells(self.sought.id, self.sought.entry_id)
        return from_told(told) if told else None

    def tell(self, told: StatusLookup) -> None:
        """This is what it waited for."""
        self.told = told
        self._event.set()

    def rouse(self) -> None:
        """It had better look for itself."""
        self._event.set()

    def wait(self, timeout: float | None) -> StatusLookup | None:
        """What was told within `timeout` seconds; None also if it was roused."""
        self._event.wait(timeout)
        self._event.clear()
        return self.told


class Waiters:
    """The waiters of one lane. Its user sees to it that one thread at a time is in it."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[Waiter]] = {}
        self._in_order: list[tuple[bytes, int, Waiter]] = []
        self._committed: dict[int, Waiter] = {}
        self._confirmation: ReplicaProgress | None = None
        self.patient = 0

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def add(self, waiter: Waiter) -> None:
        """Let a waiter hear."""
        self.patient += waiter.enough is not None
        self._by_id.setdefault(waiter.sought.id, []).append(waiter)
        if waiter.order:
            bisect.insort(self._in_order, (waiter.order, id(waiter), waiter))

    def remove(self, waiter: Waiter) -> None:
        """It heard, or waits no longer."""
        self.patient -= waiter.enough is not None
        self._committed.pop(id(waiter), None)
        same = self._by_id[waiter.sought.id]
        same.remove(waiter)
        if not same:
            del self._by_id[waiter.sought.id]
        if waiter.order:
            del self._in_order[bisect.bisect_left(self._in_order, (waiter.order, id(waiter)))]

    def hear(self, note: Note) -> list[tuple[Waiter, StatusLookup]]:
        """A note is there: whom to tell what."""
        heard = []
        for waiter in self.concerned(note):
            told = waiter.hear(note)
            if told is not None:
                reached = self.commit(waiter, told, newest=True)
                heard += [(waiter, reached)] if reached else []
        return heard

    def concerned(self, note: Note) -> list[Waiter]:
        """Those for whom a note may answer."""
        named = (*note.also, *note.dead, *note.discarded)
        found = [waiter for i in named for waiter in self._by_id.get(i, ())]
        span = note.entries.span
        if span:
            first, last = map(sortable, span)
            start = bisect.bisect_left(self._in_order, (first,))
            end = bisect.bisect_left(self._in_order, (last + b"~",))
            found += [waiter for _, _, waiter in self._in_order[start:end]]
        return found

    def commit(
        self, waiter: Waiter, told: StatusLookup, *, newest: bool = False,
        servers: Mapping[str, str] | None = None,
    ) -> StatusLookup | None:  # fmt: skip
        """What is known of a waiter's transaction; what to tell it, None while there is not enough.

        A commit that was looked up may be older than one that was heard, on another timeline.
        `servers` are those that were told of then.
        """
        if servers is not None and self._confirmation and self._confirmation.servers != servers:
            # A name was given to another server, and the ring for it is not heard yet.
            self._confirmation = None
        if waiter.enough is None or told.state not in ("committed", "replicated"):
            return told
        if newest or told.position is None or not _same_log(waiter.reached, told.position):
            waiter.reached = told
        self._committed[id(waiter)] = waiter
        found = self._confirmation
        if found is not None and newest and not found.watched(time.time()):
            # Nobody would tell; it finds that out, and asks now and then.
            waiter.rouse()
        return self._enough(waiter, {})

    def confirm(self, found: ReplicaProgress) -> list[tuple[Waiter, StatusLookup]]:
        """This is told of the replicas by now: whom to tell what."""
        before, self._confirmation = self._confirmation, found
        if before is not None and before.primary != found.primary:
            for waiter in self._committed.values():
                waiter.rouse()
        if before == found:
            return []
        furthest = max((position.lsn for position in found.positions.values()), default=0)
        heard, known = [], dict[Position, dict[str, bool]]()
        for waiter in self._committed.values():
            if _lsn(waiter) <= furthest or not found.awaited:
                told = self._enough(waiter, known)
                heard += [(waiter, told)] if told else []
        return heard

    def forget(self) -> None:
        """Nobody reads any more what is told of the replicas."""
        self._confirmation = None

    def _enough(
        self, waiter: Waiter, known: dict[Position, dict[str, bool]]
    ) -> StatusLookup | None:
        found, reached = self._confirmation, waiter.reached
        if found is None or reached is None or reached.position is None or waiter.enough is None:
            return None
        having = known.get(reached.position)
        if having is None:
            having = known[reached.position] = found.having(reached.position)
        now = on_replicas(reached, having, found.awaited)
        return now if waiter.enough(now, found) else None


def _lsn(waiter: Waiter) -> int:
    reached = waiter.reached
    return reached.position.lsn if reached and reached.position else 0


def _same_log(reached: StatusLookup | None, position: Position) -> bool:
    return bool(reached and reached.position and reached.position.comparable(position))
