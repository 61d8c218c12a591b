"""Where to read one's own write: a server that has it, for a receipt or the text of one (P8).

The nearest replica that has it, else the primary: by what the replication watch tells, which costs
one question to Redis, else by asking the servers' own ledgers. The caller says how long to wait,
and whether the primary will do.
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
from processor.receipts import tracker
from processor.receipts.receipt import Receipt
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import UNKNOWN, Sought, StatusLookup
from processor.receipts.tracker import Tracker

#: Where nobody follows the replicas, their ledgers are asked this often, seconds.
_POLL = 0.05
_WAITING = ("accepted", "scheduled", "parked", "retrying")


@dataclass(frozen=True, slots=True)
class Server:
    """A server to read from, by its name in `replicas.servers`, or `primary`."""

    name: str
    dsn: str = field(repr=False)


def route(after: Receipt | str, *, wait: float = 0.0, primary: bool = True) -> Server:
    """A server that shows the write of a receipt, or of the text of one.

    The nearest replica that has it; else whichever has it first within `wait` seconds; else the
    primary, if it will do. Raises ReplicaBehind, TransactionLost, InvalidTransaction, and
    RedisUnavailable if no server has it that can be found without Redis.
    """
    receipt, left = receipts.of(after), receipts.seconds("wait", wait)
    return server_for(receipt, wait=left, primary=primary)


def server_for(receipt: Receipt, *, wait: float = 0.0, primary: bool = True) -> Server:
    """As `route`."""
    asked = tracker.current()
    return _Search(asked, receipt.sought(asked.settings.namespace)).run(wait, primary)


class _Search:
    """The search for a server that has one transaction."""

    def __init__(self, asked: Tracker, sought: Sought) -> None:
        self._asked = asked
        self._sought = sought
        self._servers = asked.settings.replicas.servers
        self._reached = UNKNOWN
        self._found = ReplicaProgress(None, dict.fromkeys(self._servers), {})
        self._away: RedisUnavailable | None = None

    def run(self, wait: float, primary: bool) -> Server:
        end = time.monotonic() + wait
        self._look()
        name = self._nearest() or (self._await(end) if wait > 0 else None)
        if name is not None:
            return Server(name, self._servers[name])
        if primary and self._on_primary():
            return Server(PRIMARY, self._asked.settings.database.dsn)
        if self._away is not None:
            raise self._away
        raise ReplicaBehind(
            f"no server that may be read from has transaction {self._sought.id}, which is"
            f" {self._reached.state}", catch_up=_catch_up(self._reached, self._found),
        )  # fmt: skip

    def _look(self) -> None:
        """See how far it is; the ledgers know, too, if neither Redis nor the primary can tell."""
        try:
            reached, self._found = self._asked.look(self._sought)
            self._reach(reached)
        except RedisUnavailable as away:
            self._away = away
        except DatabaseUnavailable:
            pass

    def _reach(self, reached: StatusLookup) -> None:
        if reached.state == "lost":
            raise TransactionLost(self._sought.id, reached.reason)
        self._reached = reached

    @property
    def _waits(self) -> bool:
        """Whether no server can have it."""
        settle = self._asked.settings.settle
        return self._reached.state in _WAITING and settle == "committed"

    def _nearest(self) -> str | None:
        """The first replica that has it."""
        if self._waits:
            return None
        told = self._reached.replicas
        for name in self._readable():
            if told.get(name) or self._asked.ledgers.on_replica(name, self._sought.id):
                return name
        return None

    def _readable(self) -> list[str]:
        return [name for name in self._found.readable(time.time()) if name in self._servers]

    def _await(self, end: float) -> str | None:
        """The first replica that has it in time."""
        followed = self._found.watched(time.time())
        names = self._readable()
        if self._away is None and (not names or followed.issuperset(names)):
            self._hear(end - time.monotonic(), bool(names))
            return self._nearest()
        pause = threading.Event()
        while (left := end - time.monotonic()) > 0:
            pause.wait(min(left, _POLL))
            self._look()
            name = self._nearest()
            if name is not None:
                return name
        return None

    def _hear(self, left: float, replicas: bool) -> None:
        def anywhere(reached: StatusLookup, found: ReplicaProgress) -> bool:
            self._found = found
            return any(reached.replicas.get(name) for name in self._readable())

        try:
            enough = anywhere if replicas else None
            self._reach(self._asked.wait(self._sought, max(0.0, left), enough))
        except Unavailable:
            # Whoever has it may still be found by asking.
            self._reached = UNKNOWN

    def _on_primary(self) -> bool:
        if self._waits:
            return False
        try:
            known, _ = self._asked.ledgers.on_primary(
                lambda database: outcomes.find(database, [self._sought.id]), self._found.primary
            )
        except DatabaseUnavailable:
            return False
        return bool(known)


def _catch_up(reached: StatusLookup, found: ReplicaProgress) -> float | None:
    """In how many seconds the first replica should have it: by how far behind each is now."""
    lags = [
        replica.lag for name in found.readable(time.time())
        if (replica := found.replicas[name]) is not None and replica.lag is not None
    ]  # fmt: skip
    if not lags or reached.at is None:
        return None
    age = time.time() - reached.at
    # One that should have had it by now is as late again as it is.
    return min(max(lag - age, 0.0) or lag for lag in lags)
