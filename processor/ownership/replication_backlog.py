"""Entries whose outcome is committed and that stay in the stream until replicas have it (rule 22).

Only ranges are remembered, so that memory stays flat however long a replica is behind; what lies in
a range is read anew when it may go. An entry that was parked stays in the stream as well, and is
due alone when its end is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from processor.buffer.entry_ids import order
from processor.connections.wal_position import Position

#: More ranges than this are joined, two and two: each then waits for its last commit.
_MOST = 2_000
#: Of more single entries than this nothing is remembered: they are met again from the head.
_SINGLES = 20_000


@dataclass(frozen=True, slots=True)
class Range:
    """Entries from `first` to `last` that may go when replicas have `position`."""

    position: Position
    first: str
    last: str
    count: int = 1


@dataclass(slots=True)
class ReplicationBacklog:
    """What one lane keeps in its stream, in the order of the commits."""

    ranges: deque[Range] = field(default_factory=deque)
    single: dict[str, Position] = field(default_factory=dict)
    #: The connection on which all of it was read (rule 9).
    generation: int = 0
    #: Up to where single entries ended that are not remembered.
    _missed: Position | None = None
    _incomplete: bool = False
    _grain: int = 1
    _pages: int = 0

    @property
    def last(self) -> str:
        """The last entry that is committed and withheld; empty if there is none."""
        return self.ranges[-1].last if self.ranges else ""

    def __len__(self) -> int:
        """How many entries there are, about: some of them may have gone already."""
        return sum(span.count for span in self.ranges) + len(self.single)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.single)

    def on(self, generation: int) -> None:
        """What follows was read on this connection to Redis; of another one nothing is known."""
        if self.generation != generation:
            self.forget()
            self.generation = generation

    def add(self, position: Position, first: str, last: str, count: int = 1) -> None:
        """All of a page, but for what does not end yet."""
        if not self.ranges:
            self._grain = 1
        elif self._pages < self._grain:
            joined = self.ranges.pop()
            self._pages += 1
            self.ranges.append(Range(position, joined.first, last, joined.count + count))
            return
        elif len(self.ranges) >= _MOST:
            # All of one size: were only the old ones joined, the first would grow as fast as the
            # stream, and never go while a replica is behind by more than the others.
            pairs = list(self.ranges)
            self.ranges = deque(
                Range(b.position, a.first, b.last, a.count + b.count)
                for a, b in zip(pairs[::2], pairs[1::2], strict=True)
            )
            self._grain *= 2
        self.ranges.append(Range(position, first, last, count))
        self._pages = 1

    def add_single(self, position: Position, entry_id: str) -> None:
        """An entry that had been parked, and has come to its end, later than all before."""
        self.single.pop(entry_id, None)
        if len(self.single) < _SINGLES:
            self.single[entry_id] = position
        else:
            self._missed, self._incomplete = position, True

    def due(self, has: Callable[[Position], bool]) -> Range | None:
        """The oldest range, if it may go now; it is forgotten here."""
        if self._missed is not None:
            # One of those that are not remembered may lie in it, and have ended later.
            if not has(self._missed):
                return None
            self._missed = None
        return self.ranges.popleft() if self.ranges and has(self.ranges[0].position) else None

    def due_singles(self, has: Callable[[Position], bool], most: int) -> list[str]:
        """Single entries that may go now, at most so many; they are forgotten here."""
        ids: list[str] = []
        reached = None
        for entry_id, position in self.single.items():
            if len(ids) == most or (position is not reached and not has(position)):
                break
            reached = position
            ids.append(entry_id)
        for entry_id in ids:
            del self.single[entry_id]
        return ids

    @property
    def is_complete(self) -> bool:
        """Whether all is remembered that may go some time, or it is too early to look for it."""
        return not self._incomplete or self._missed is not None

    def back_to(self, entry_ids: Iterable[str]) -> str:
        """Forget the ranges in which these lie, and all behind; the last entry before them."""
        first = min(map(order, entry_ids))
        while self.ranges and order(self.ranges[-1].last) >= first:
            self.ranges.pop()
        return self.last

    def forget(self) -> None:
        """The stream is read from its head: everything is met again."""
        self.ranges.clear()
        self.single.clear()
        self._missed, self._incomplete = None, False
