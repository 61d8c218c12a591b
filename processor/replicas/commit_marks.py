"""Commit marks: which commit of the writing session a replica shows, and what that proves.

Every batch updates its lane's row, so the row's xmin on a replica identifies the last batch that
was replayed there. A mark joins the transaction id of a batch with the WAL position read just after
its commit. Marks belong to one session and one set of owned lanes. The commits of a session follow
each other, so a replica that shows one has all earlier ones. The owner token in a lane's row
identifies the session, and with it the timeline, whatever the replica was promoted to meanwhile. An
LSN alone would not (rules 32 and 34).

The drain thread adds marks; any thread may ask.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable

from processor.connections.wal_position import Position

#: At this many marks the older half is downsampled: a replica far behind advances in larger steps.
_MOST_MARKS = 8192
_XID_RANGE = 1 << 32


class CommitMarks:
    """The commits of one session, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_next: set[Callable[[], None]] = set()
        self._tokens: dict[str, str] = {}
        self._clear()

    def _clear(self) -> None:
        self._first_xid = 0
        self._offsets: list[int] = []
        self._positions: list[Position] = []
        self._times: list[float] = []

    def start_session(self, tokens: dict[str, str]) -> None:
        """Forget all marks: another session begins, or one with other lanes.

        `tokens` maps the owner token in each lane's row to the name of the lane.
        """
        with self._lock:
            self._clear()
            self._tokens = dict(tokens)

    def add(self, xid: int, position: Position) -> None:
        """Add a commit of the session, later than all before; `xid` is its transaction id."""
        with self._lock:
            if not self._offsets:
                self._first_xid = xid
            elif xid - self._first_xid <= self._offsets[-1]:
                return
            if len(self._offsets) >= _MOST_MARKS:
                for column in (self._offsets, self._positions, self._times):
                    del column[1 : _MOST_MARKS // 2 : 2]
            self._offsets.append(xid - self._first_xid)
            self._positions.append(position)
            self._times.append(time.monotonic())
            callbacks, self._on_next = self._on_next, set()
        for wake in callbacks:
            wake()

    def notify_next(self, wake: Callable[[], None]) -> None:
        """Call `wake` once, when the next mark is added."""
        with self._lock:
            self._on_next.add(wake)

    def lanes_by_token(self) -> dict[str, str]:
        """Return the session's lanes by the owner tokens in their rows."""
        with self._lock:
            return dict(self._tokens)

    def newest(self) -> Position | None:
        """Return the position of the session's last commit."""
        with self._lock:
            return self._positions[-1] if self._positions else None

    def replayed_position(self, rows: Iterable[tuple[str, int]]) -> Position | None:
        """Return the position that a replica provably reached, by the lanes' rows that it shows.

        The rows are given as (token, xmin). None if they prove nothing.
        """
        best = -1
        with self._lock:
            for token, xmin in rows:
                if token in self._tokens and self._offsets:
                    # xmin has 32 bits; no session lasts for two billion transactions.
                    offset = (xmin - self._first_xid) % _XID_RANGE
                    if offset < _XID_RANGE // 2:
                        best = max(best, bisect.bisect_right(self._offsets, offset) - 1)
            return self._positions[best] if best >= 0 else None

    def first_commit_after(self, position: Position | None) -> float | None:
        """Return when (monotonic) the first commit after `position` was made; None without one."""
        with self._lock:
            if not self._positions:
                return None
            if position is None or not self._positions[0].comparable(position):
                return self._times[0]
            index = bisect.bisect_right(self._positions, position.lsn, key=lambda p: p.lsn)
            return self._times[index] if index < len(self._times) else None
