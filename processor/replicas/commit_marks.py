"""Marks: which commit of the writing session a replica shows, and how far that proves it got.

Each batch touches its lane's row, so the row's xmin on a replica names the last batch that was
replayed there. A mark joins the transaction id of a batch with the position read just after its
commit. Marks are of one session and one set of owned lanes: the commits of one session follow each
other, so whoever shows one has all before it, and a token of a lane's row names the session - and
with it the timeline - whatever a replica was promoted to meanwhile. An LSN alone would not (rule
32, 34).

The drain thread adds; any thread may ask.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable

from processor.connections.wal_position import Position

#: Of more marks than this the older half is thinned out: what is far behind is followed in steps.
_MOST = 8192
_WORD = 1 << 32


class CommitMarks:
    """The commits of one session, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awaited: set[Callable[[], None]] = set()
        self._tokens: dict[str, str] = {}
        self._forget()

    def _forget(self) -> None:
        self._base = 0
        self._ages: list[int] = []
        self._positions: list[Position] = []
        self._times: list[float] = []

    def begin(self, tokens: dict[str, str]) -> None:
        """Another session, or other lanes: `tokens` are their owner tokens, and whose they are."""
        with self._lock:
            self._forget()
            self._tokens = dict(tokens)

    def add(self, xid: int, position: Position) -> None:
        """A commit of the session, later than all before; `xid` is its transaction id."""
        with self._lock:
            if not self._ages:
                self._base = xid
            elif xid - self._base <= self._ages[-1]:
                return
            if len(self._ages) >= _MOST:
                for each in (self._ages, self._positions, self._times):
                    del each[1 : _MOST // 2 : 2]
            self._ages.append(xid - self._base)
            self._positions.append(position)
            self._times.append(time.monotonic())
            awaited, self._awaited = self._awaited, set()
        for wake in awaited:
            wake()

    def await_next(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when the next mark is added."""
        with self._lock:
            self._awaited.add(wake)

    def lanes(self) -> dict[str, str]:
        """The lanes of the session, by the tokens of their rows."""
        with self._lock:
            return dict(self._tokens)

    def newest(self) -> Position | None:
        """Where the last commit of the session is."""
        with self._lock:
            return self._positions[-1] if self._positions else None

    def shown(self, rows: Iterable[tuple[str, int]]) -> Position | None:
        """How far a replica is proved to be by these lanes' rows, given as (token, xmin)."""
        best = -1
        with self._lock:
            for token, xmin in rows:
                if token in self._tokens and self._ages:
                    # xmin has 32 bits; no session lasts for two thousand million transactions.
                    age = (xmin - self._base) % _WORD
                    if age < _WORD // 2:
                        best = max(best, bisect.bisect_right(self._ages, age) - 1)
            return self._positions[best] if best >= 0 else None

    def since(self, position: Position | None) -> float | None:
        """When (monotonic) the first commit behind `position` was made; None if there is none."""
        with self._lock:
            if not self._positions:
                return None
            if position is None or not self._positions[0].comparable(position):
                return self._times[0]
            place = bisect.bisect_right(self._positions, position.lsn, key=lambda p: p.lsn)
            return self._times[place] if place < len(self._times) else None
