"""One try at a batch of a lane, with what the lane learns from it.

`apply` tells what became of the entries; here it is told apart what is theirs and what is the
lane's: another owner, contention, a failure that all have alike, an entry that ends the session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from processor.apply.applier import Applier
from processor.apply.batch_text import Written
from processor.apply.committer import Committer
from processor.apply.outcome import Contended, Fenced, Outcome, Systemic
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.drain import troubles
from processor.errors import DatabaseUnavailable, Unavailable
from processor.ledger import lane_rows, outcomes
from processor.ownership.owners import OwnedLane
from processor.telemetry import metrics
from processor.transaction.entry import Entry

log = logging.getLogger("processor.drain")


class Attempts:
    """Tries batches for one processor. `answered`: the server answered since the last cut."""

    def __init__(
        self, settings: Settings, session: Committer, applier: Applier, redis: RedisConnection
    ) -> None:
        self._settings = settings
        self._session = session
        self._applier = applier
        self._redis = redis
        self.answered = False

    def apply(
        self,
        lane: OwnedLane,
        entries: list[Entry],
        ahead: Written | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Outcome | None:
        """Apply a batch; None if it was put off, with the lane paused or another's."""
        assert lane.owner is not None
        if lane.condemned == entries[0].id and self._is_crasher(lane, entries[0]):
            return troubles.condemned(lane, entries)
        trouble: list[Unavailable] = []
        started = time.monotonic()
        try:
            outcome = self._applier.apply(
                lane.owner, entries, ahead, meanwhile and self._guarded(meanwhile, trouble)
            )
        except Fenced:
            metrics.count("fenced")
            log.warning("lane %s: fenced, another processor owns it", lane.lane.name)
            lane.owner = None
            lane.forget()
            return None
        except (Contended, Systemic) as error:
            word = "contended" if isinstance(error, Contended) else "systemic"
            troubles.pause(lane, f"{word}: {error}")
            return None
        except DatabaseUnavailable:
            # Its own doing, if the server answered in between.
            troubles.ended_session(
                lane, entries, self._settings.retry.attempts, answered=self.answered,
                slow=self._share(started) >= 1.0,
            )  # fmt: skip
            self.answered = False
            raise
        if trouble:
            raise trouble[0]
        share = self._share(started)
        return outcome if self._is_their_own(lane, entries, outcome, share) else None

    def _share(self, started: float) -> float:
        return (time.monotonic() - started) / self._settings.database.call_timeout

    def _is_crasher(self, lane: OwnedLane, entry: Entry) -> bool:
        """Whether the server takes a batch without it, and never took it (rule 13, P4).

        A server that answers and cannot commit - it waits for a standby - is an outage.
        """
        assert lane.owner is not None
        lane.condemned = ""
        self._session.begin()
        self._session.commit(lane_rows.fence(lane.owner, 0))
        if outcomes.find(self._session.database, [entry.id]):
            return False
        lane.condemned = entry.id
        return True

    def _is_their_own(
        self, lane: OwnedLane, entries: list[Entry], outcome: Outcome, share: float
    ) -> bool:
        """Whether the failures are the entries' doing; if not, the lane is paused (systemic)."""
        state = troubles.well(lane, entries, outcome, self._settings.batch.entries, share)
        if state is None or self._allowed(lane):
            return True
        troubles.pause(lane, f"systemic: SQLSTATE {state} from one transaction after the other")
        return False

    def _allowed(self, lane: OwnedLane) -> bool:
        """Whether an operator lifted the pause: `queues resume` lets failures be as they are."""
        key = f"{self._settings.namespace}:resumed"
        if not self._redis.call("HDEL", key, lane.lane.name):
            return False
        lane.streak = ("", frozenset())
        return True

    @staticmethod
    def _guarded(meanwhile: Callable[[], None], trouble: list[Unavailable]) -> Callable[[], None]:
        # PostgreSQL is at work on the batch: whatever Redis does, its answer must be received.
        def run() -> None:
            try:
                meanwhile()
            except Unavailable as error:
                trouble.append(error)

        return run
