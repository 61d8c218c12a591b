"""Entries whose outcome is committed but that wait in the stream for replicas (rule 22).

Only ranges are remembered, so that memory stays flat however far a replica is behind; the entries
of a range are read again when the range may be removed. An entry that was parked stays in the
stream as well; it is remembered alone, once its own outcome is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from processor.buffer.entry_ids import order
from processor.connections.wal_position import Position

#: More ranges than this are joined in pairs; a joined range waits for its last commit.
_MOST = 2_000
#: Beyond this many single entries the backlog stops tracking them; the stream is read again.
_SINGLES = 20_000


@dataclass(frozen=True, slots=True)
class Range:
    """About `count` entries from `first` to `last`, to be removed when replicas have `position`."""

    position: Position
    first: str
    last: str
    count: int = 1


@dataclass(slots=True)
class ReplicationBacklog:
    """What one lane withholds from removal, in the order of the commits."""

    ranges: deque[Range] = field(default_factory=deque)
    single: dict[str, Position] = field(default_factory=dict)
    #: The connection to Redis on which all of it was read (rule 9).
    generation: int = 0
    #: The last commit of a single entry that is not tracked.
    _untracked: Position | None = None
    _incomplete: bool = False
    #: Pages that a new range takes up, and how many the newest one has.
    _grain: int = 1
    _pages: int = 0

    @property
    def last(self) -> str:
        """The id of the last withheld entry, "" if there is none."""
        return self.ranges[-1].last if self.ranges else ""

    def __len__(self) -> int:
        """About how many entries are withheld; some may have been removed already."""
        return sum(span.count for span in self.ranges) + len(self.single)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.single)

    def on(self, generation: int) -> None:
        """Forget what was read on another connection to Redis than this."""
        if self.generation != generation:
            self.forget()
            self.generation = generation

    def add(self, position: Position, first: str, last: str, count: int = 1) -> None:
        """Withhold a page, whose last commit is at `position`."""
        if not self.ranges:
            self._grain = 1
        elif self._pages < self._grain:
            joined = self.ranges.pop()
            self._pages += 1
            self.ranges.append(Range(position, joined.first, last, joined.count + count))
            return
        elif len(self.ranges) >= _MOST:
            # All ranges get the same size. If only the old ones were joined, the first would grow
            # as fast as the stream, and would never be removed while a replica stays far behind.
            pairs = list(self.ranges)
            self.ranges = deque(
                Range(b.position, a.first, b.last, a.count + b.count)
                for a, b in zip(pairs[::2], pairs[1::2], strict=True)
            )
            self._grain *= 2
        self.ranges.append(Range(position, first, last, count))
        self._pages = 1

    def add_single(self, position: Position, entry_id: str) -> None:
        """Withhold an entry that had been parked; its commit is later than all before."""
        self.single.pop(entry_id, None)
        if len(self.single) < _SINGLES:
            self.single[entry_id] = position
        else:
            self._untracked, self._incomplete = position, True

    def due(self, has: Callable[[Position], bool]) -> Range | None:
        """Pop and return the oldest range, if replicas have it. `has` answers for a position."""
        if self._untracked is not None:
            # An untracked entry may lie in the range, and its commit may be later.
            if not has(self._untracked):
                return None
            self._untracked = None
        return self.ranges.popleft() if self.ranges and has(self.ranges[0].position) else None

    def due_singles(self, has: Callable[[Position], bool], most: int) -> list[str]:
        """Pop and return at most `most` single entries that replicas have."""
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
        """Whether all withheld entries are tracked, or it is too early to look for the others."""
        return not self._incomplete or self._untracked is not None

    def back_to(self, entry_ids: Iterable[str]) -> str:
        """Forget the ranges from the first of these entries on; return the last entry before."""
        first = min(map(order, entry_ids))
        while self.ranges and order(self.ranges[-1].last) >= first:
            self.ranges.pop()
        return self.last

    def forget(self) -> None:
        """Forget everything; the stream is read from its head again."""
        self.ranges.clear()
        self.single.clear()
        self._untracked, self._incomplete = None, False
