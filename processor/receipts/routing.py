"""Where to read one's own write: a server that has it, for a receipt or the text of one (P8).

The nearest replica that has it, else the primary. What the replication watch reports decides, which
costs one question to Redis; without a report, the servers' own ledgers are asked. The caller says
how long to wait, and whether the primary may be used.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from processor.config.settings import PRIMARY
from processor.errors import (
    DatabaseUnavailable,
    RedisUnavailable,
    ReplicaBehind,
    TransactionLost,
    Unavailable,
)
from processor.ledger import outcomes
from processor.receipts import receipt as receipts
from processor.receipts import tracker as trackers
from processor.receipts.receipt import Receipt
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import UNKNOWN, StatusLookup, Target
from processor.receipts.tracker import Tracker

#: How often the ledgers of replicas are asked that no watch follows, seconds.
_POLL = 0.05
_UNCOMMITTED = ("accepted", "scheduled", "parked", "retrying")


@dataclass(frozen=True, slots=True)
class Server:
    """A server to read from, by its name in `replicas.servers`, or `primary`."""

    name: str
    dsn: str = field(repr=False)


def route(after: Receipt | str, *, wait: float = 0.0, primary: bool = True) -> Server:
    """Return a server that shows the write of a receipt, or of the text of one.

    The nearest replica that has it; else the first that has it within `wait` seconds; else the
    primary, if `primary` allows it. Raises ReplicaBehind, TransactionLost, InvalidTransaction, and
    RedisUnavailable if no server that can be found without Redis has it.
    """
    receipt, left = receipts.of(after), receipts.seconds("wait", wait)
    return server_for(receipt, wait=left, primary=primary)


def server_for(receipt: Receipt, *, wait: float = 0.0, primary: bool = True) -> Server:
    """As `route`."""
    tracker = trackers.current()
    return _Search(tracker, receipt.target(tracker.settings.namespace)).run(wait, primary)


class _Search:
    """The search for a server that has one transaction."""

    def __init__(self, tracker: Tracker, target: Target) -> None:
        self._tracker = tracker
        self._target = target
        self._servers = tracker.settings.replicas.servers
        self._status = UNKNOWN
        self._progress = ReplicaProgress(None, dict.fromkeys(self._servers), {})
        self._redis_error: RedisUnavailable | None = None

    def run(self, wait: float, primary: bool) -> Server:
        end = time.monotonic() + wait
        self._look_up()
        name = self._nearest() or (self._await(end) if wait > 0 else None)
        if name is not None:
            return Server(name, self._servers[name])
        if primary and self._on_primary():
            return Server(PRIMARY, self._tracker.settings.database.dsn)
        if self._redis_error is not None:
            raise self._redis_error
        raise ReplicaBehind(
            f"no server that may be read from has transaction {self._target.id}, which is"
            f" {self._status.state}", catch_up=_catch_up(self._status, self._progress),
        )  # fmt: skip

    def _look_up(self) -> None:
        """Look up the status; if neither Redis nor the primary can tell, the ledgers still may."""
        try:
            status, self._progress = self._tracker.status_and_progress(self._target)
            self._set_status(status)
        except RedisUnavailable as error:
            self._redis_error = error
        except DatabaseUnavailable:
            pass

    def _set_status(self, status: StatusLookup) -> None:
        if status.state == "lost":
            raise TransactionLost(self._target.id, status.reason)
        self._status = status

    @property
    def _is_uncommitted(self) -> bool:
        """Whether no server can have it."""
        settle = self._tracker.settings.settle
        return self._status.state in _UNCOMMITTED and settle == "committed"

    def _nearest(self) -> str | None:
        """Return the nearest replica that has it."""
        if self._is_uncommitted:
            return None
        having = self._status.replicas
        for name in self._readable():
            if having.get(name) or self._tracker.ledgers.on_replica(name, self._target.id):
                return name
        return None

    def _readable(self) -> list[str]:
        return [name for name in self._progress.readable(time.time()) if name in self._servers]

    def _await(self, end: float) -> str | None:
        """Return the first replica that has it until `end` (monotonic)."""
        watched = self._progress.watched(time.time())
        names = self._readable()
        if self._redis_error is None and (not names or watched.issuperset(names)):
            self._await_report(end - time.monotonic(), bool(names))
            return self._nearest()
        pause = threading.Event()
        while (left := end - time.monotonic()) > 0:
            pause.wait(min(left, _POLL))
            self._look_up()
            name = self._nearest()
            if name is not None:
                return name
        return None

    def _await_report(self, left: float, replicas: bool) -> None:
        def anywhere(status: StatusLookup, progress: ReplicaProgress) -> bool:
            self._progress = progress
            return any(status.replicas.get(name) for name in self._readable())

        try:
            enough = anywhere if replicas else None
            self._set_status(self._tracker.wait(self._target, max(0.0, left), enough))
        except Unavailable:
            # A server that has it may still be found by asking the ledgers.
            self._status = UNKNOWN

    def _on_primary(self) -> bool:
        if self._is_uncommitted:
            return False
        try:
            found, _ = self._tracker.ledgers.on_primary(
                lambda database: outcomes.find(database, [self._target.id]), self._progress.primary
            )
        except DatabaseUnavailable:
            return False
        return bool(found)


def _catch_up(status: StatusLookup, progress: ReplicaProgress) -> float | None:
    """Return in how many seconds the first replica should have it, by the present lags."""
    lags = [
        replica.lag for name in progress.readable(time.time())
        if (replica := progress.replicas[name]) is not None and replica.lag is not None
    ]  # fmt: skip
    if not lags or status.at is None:
        return None
    age = time.time() - status.at
    # A replica that should have it by now is as late again as it is behind.
    return min(max(lag - age, 0.0) or lag for lag in lags)
