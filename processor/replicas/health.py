"""The status of each replica, as this processor judges it: following, lagging, away or lost.

Followers record the answers of replicas here. Before a committed entry leaves Redis, the drain asks
whether the replicas have its commit. The status is judged when it is asked for, so that a follower
that hangs in a call cannot make the drain wait indefinitely.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from processor.config.settings import Replicas
from processor.connections.wal_position import Position, is_less
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry.status import Replica

log = logging.getLogger("processor.replicas")


@dataclass(slots=True)
class _Record:
    """What is known of one replica.

    `answered` and `advanced` are when (monotonic) it last answered and last replayed a commit of
    this processor; `at` is `answered` in Unix seconds, None before the first answer.
    """

    answered: float
    advanced: float
    position: Position | None = None
    lsn: str | None = None
    server: str = ""
    at: float | None = None
    away: bool = False
    lost: bool = False


class ReplicaHealth:
    """The replicas of one processor."""

    def __init__(self, settings: Replicas, marks: CommitMarks, names: Iterable[str]) -> None:
        self._settings = settings
        self._marks = marks
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}
        for name in names:
            self._record(name, time.monotonic())

    @property
    def names(self) -> list[str]:
        """All replicas that ever answered or are waited for."""
        with self._lock:
            return sorted(self._records)

    def restore_lost(self, name: str) -> None:
        """Start a replica as lost, as it was last published; it stays lost until it answers."""
        with self._lock:
            self._record(name, time.monotonic()).lost = True

    def detect_other_server(self, name: str, lsn: str | None, server: str) -> bool:
        """Whether the name now belongs to another server, or its server went back.

        If so, nothing that was recorded for the name counts any more, and it is reset.
        """
        now = time.monotonic()
        with self._lock:
            record = self._record(name, now)
            went_back = is_less(lsn, record.lsn)
            is_other, record.server = record.server not in ("", server), server
            if went_back or is_other:
                record.position, record.lsn, record.advanced = None, lsn, now
        return went_back or is_other

    def record_answer(self, name: str, position: Position | None, lsn: str | None) -> bool:
        """Record that a replica answered and has the commits up to `position`.

        Return whether it has advanced since its last answer.
        """
        now = time.monotonic()
        with self._lock:
            record = self._record(name, now)
            record.answered, record.at, record.lsn, record.away = now, time.time(), lsn, False
            advanced = position is not None and (
                record.position is None
                or not record.position.comparable(position)
                or position.lsn > record.position.lsn
            )
            if advanced:
                record.position, record.advanced = position, now
        return advanced

    def record_no_answer(self, name: str) -> None:
        """Record that a replica did not answer."""
        with self._lock:
            self._record(name, time.monotonic()).away = True

    def is_behind(self, name: str) -> bool:
        """Whether the replica has not shown every commit of the session yet."""
        with self._lock:
            record = self._record(name, time.monotonic())
            return self._marks.first_commit_after(record.position) is not None

    def have_replayed(self, position: Position, names: Sequence[str]) -> bool:
        """Whether all of these replicas have a commit; lost ones do not count (rule 33)."""
        now = time.monotonic()
        with self._lock:
            for name in names:
                record = self._record(name, now)
                if record.position is not None and record.position.reaches(position):
                    continue
                if not self._update_lost(name, record, now):
                    return False
        return True

    def all_have_replayed(self, position: Position, names: Iterable[str]) -> bool:
        """Whether all of these replicas are known to have a commit, lost ones included."""
        with self._lock:
            return all(
                (record := self._records.get(name)) is not None
                and record.position is not None and record.position.reaches(position)
                for name in names
            )  # fmt: skip

    def state(self, name: str) -> Replica:
        """Return the status of a replica now."""
        now = time.monotonic()
        with self._lock:
            record = self._record(name, now)
            since = self._marks.first_commit_after(record.position)
            lag = 0.0 if since is None else now - since
            lost = self._update_lost(name, record, now)
        lagging = "lagging" if lag > self._settings.timeout else "following"
        status = "lost" if lost else "away" if record.away else lagging
        return Replica(status, record.at, record.lsn, round(lag, 3), time.time())

    def _update_lost(self, name: str, record: _Record, now: float) -> bool:
        """Judge whether a replica is lost, and log when it becomes lost and when it is back."""
        since = self._marks.first_commit_after(record.position)
        silent = now - record.answered
        stalled = 0.0 if since is None else now - max(since, record.advanced)
        limit = self._settings.lost_after
        if record.lost:
            caught_up = since is None or now - since <= self._settings.timeout
            if record.at is not None and not record.away and caught_up and silent <= limit:
                record.lost = False
                log.warning("replica %s is back", name)
        elif max(silent, stalled) > limit:
            record.lost = True
            what = "has not answered" if silent >= stalled else "has replayed nothing new"
            log.error("replica %s is lost: it %s for %.0f s; nothing waits for it any more, and"
                      " reads from it are refused", name, what, max(silent, stalled))  # fmt: skip
        return record.lost

    def _record(self, name: str, now: float) -> _Record:
        return self._records.setdefault(name, _Record(now, now))
