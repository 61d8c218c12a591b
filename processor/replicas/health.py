"""How each replica stands, as this processor judges it: following, lagging, away or lost.

Followers report what they heard; the drain asks whether a commit is where it has to be before it
leaves Redis. Judged when asked, so that a follower that hangs in a call lets nobody wait for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from processor.config.settings import Replicas
from processor.connections.wal_position import Position, is_less
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry import metrics
from processor.telemetry.status import Replica

log = logging.getLogger("processor.replicas")


@dataclass(slots=True)
class _Heard:
    """What is remembered of one replica; times are monotonic, `at` is in Unix seconds."""

    heard: float
    progressed: float
    position: Position | None = None
    lsn: str | None = None
    server: str = ""
    at: float | None = None
    away: bool = False
    lost: bool = False


def set_gauges(states: Mapping[str, Replica]) -> None:
    """Export the states of replicas as metrics; called by whatever publishes them."""
    for name, replica in states.items():
        metrics.gauge("replica_lag", replica.lag or 0.0, replica=name)
        metrics.gauge("replica_lost", float(replica.state == "lost"), replica=name)


class ReplicaHealth:
    """The replicas of one processor."""

    def __init__(self, settings: Replicas, marks: CommitMarks, names: Iterable[str]) -> None:
        self._settings = settings
        self._marks = marks
        self._lock = threading.Lock()
        self._replicas: dict[str, _Heard] = {}
        for name in names:
            self._of(name, time.monotonic())

    @property
    def names(self) -> list[str]:
        """All replicas that were ever heard of or waited for."""
        with self._lock:
            return sorted(self._replicas)

    def recall(self, name: str) -> None:
        """It was lost when a processor last told of it, and is until it is heard."""
        with self._lock:
            self._of(name, time.monotonic()).lost = True

    def begins_anew(self, name: str, lsn: str | None, server: str) -> bool:
        """Whether a name stands for another server than before, or its server went back.

        Then it has nothing of what was heard before.
        """
        now = time.monotonic()
        with self._lock:
            found = self._of(name, now)
            back = is_less(lsn, found.lsn)
            other, found.server = found.server not in ("", server), server
            if back or other:
                found.position, found.lsn, found.progressed = None, lsn, now
        return back or other

    def hear(self, name: str, position: Position | None, lsn: str | None) -> bool:
        """A replica answered: it has commits up to `position`. Whether that is news."""
        now = time.monotonic()
        with self._lock:
            found = self._of(name, now)
            found.heard, found.at, found.lsn, found.away = now, time.time(), lsn, False
            further = position is not None and (
                found.position is None
                or not found.position.comparable(position)
                or position.lsn > found.position.lsn
            )
            if further:
                found.position, found.progressed = position, now
        return further

    def miss(self, name: str) -> None:
        """A replica could not be asked."""
        with self._lock:
            self._of(name, time.monotonic()).away = True

    def owes(self, name: str) -> bool:
        """Whether there is a commit that a replica has not shown yet."""
        with self._lock:
            return self._marks.since(self._of(name, time.monotonic()).position) is not None

    def has(self, position: Position, names: Sequence[str]) -> bool:
        """Whether all of these replicas have a commit, but for those that are lost (rule 33)."""
        now = time.monotonic()
        with self._lock:
            for name in names:
                found = self._of(name, now)
                if found.position is not None and found.position.reaches(position):
                    continue
                if not self._judge(name, found, now):
                    return False
        return True

    def shows(self, position: Position, names: Iterable[str]) -> bool:
        """Whether all of these replicas are known to have a commit, also those that are lost."""
        with self._lock:
            return all(
                (found := self._replicas.get(name)) is not None
                and found.position is not None and found.position.reaches(position)
                for name in names
            )  # fmt: skip

    def replica(self, name: str) -> Replica:
        """How a replica stands now."""
        now = time.monotonic()
        with self._lock:
            found = self._of(name, now)
            since = self._marks.since(found.position)
            lag = 0.0 if since is None else now - since
            lost = self._judge(name, found, now)
        lagging = "lagging" if lag > self._settings.timeout else "following"
        state = "lost" if lost else "away" if found.away else lagging
        return Replica(state, found.at, found.lsn, round(lag, 3), time.time())

    def _judge(self, name: str, found: _Heard, now: float) -> bool:
        """Whether a replica is lost: told loudly when it becomes so, and when it is back."""
        since = self._marks.since(found.position)
        silent = now - found.heard
        stalled = 0.0 if since is None else now - max(since, found.progressed)
        limit = self._settings.lost_after
        if found.lost:
            caught_up = since is None or now - since <= self._settings.timeout
            if found.at is not None and not found.away and caught_up and silent <= limit:
                found.lost = False
                log.warning("replica %s is back", name)
        elif max(silent, stalled) > limit:
            found.lost = True
            what = "was not heard of" if silent >= stalled else "replayed nothing new"
            log.error("replica %s is lost: it %s for %.0f s; nothing waits for it any more, and"
                      " reads from it are refused", name, what, max(silent, stalled))  # fmt: skip
        return found.lost

    def _of(self, name: str, now: float) -> _Heard:
        return self._replicas.setdefault(name, _Heard(now, now))
