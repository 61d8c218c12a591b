"""Receipts: what submit returns, and how far the write got since - by asking or by waiting (P8).

A receipt works in any process that reaches the same Redis; its text form travels in an HTTP header
or a cookie. Waiting costs the drain one note a batch and this process one blocking read, however
many wait.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from urllib.parse import quote, unquote

from processor import config, parked, whereabouts
from processor.buffer import Lane
from processor.database import Database
from processor.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    TransactionDead,
    WaitTimeout,
)
from processor.identity import canonical_id
from processor.progress import Progress
from processor.redis_connection import RedisConnection, RedisPool
from processor.settings import Settings
from processor.watcher import Waiter, watcher
from processor.whereabouts import UNKNOWN, Whereabouts

#: A waiter that heard nothing looks for itself, less and less often: a full Redis refuses notes.
_LOOK = 2.0
_LOOK_LEAST = 30.0
#: Threads that ask at the same time: a thousand would leave the drain thread no turn at the GIL.
_ASKING = 4
_UNTIL = ("committed",)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What submit returns: which transaction was accepted, and where it lies.

    `entry_id` is empty for a delayed transaction, which enters its lane when it is due.
    """

    id: str
    lane: str
    entry_id: str
    buffer: str

    def status(self) -> Whereabouts:
        """How far it got. Raises RedisUnavailable, or DatabaseUnavailable if only it would know."""
        return _answers().status(self)

    def wait(self, until: str = "committed", timeout: float | None = None) -> Whereabouts:
        """Wait at most `timeout` seconds until it is committed or dead; the status reached.

        Raises as `status`; a time-out is no error.
        """
        if until not in _UNTIL:
            raise InvalidTransaction("until", f"{until!r} is not one of {', '.join(_UNTIL)}")
        return _answers().wait(self, until, timeout)

    def result(self, timeout: float | None = None) -> Whereabouts:
        """Wait until it is committed. Raises TransactionDead, WaitTimeout, and as `status`."""
        reached = self.wait("committed", timeout)
        if reached.state in ("dead", "discarded"):
            raise TransactionDead(self.id, reached.reason)
        if not reached.decided:
            raise WaitTimeout(f"transaction {self.id} is {reached.state} after {timeout} s")
        return reached

    def __str__(self) -> str:
        """An opaque text for a header or cookie; texts of one lane sort as its entries do."""
        order = parked.order(self.entry_id).decode() if self.entry_id else ""
        ids = (uuid.UUID(self.id).hex, uuid.UUID(self.buffer).hex)
        return "~".join((order, *ids, quote(self.lane, safe="")))

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """The receipt of a text made by `str`. Raises InvalidTransaction."""
        try:
            order, transaction, buffer_id, lane = text.split("~")
            entry_id = "-".join(str(int(part)) for part in order.split("-")) if order else ""
            ids = canonical_id("id", transaction), canonical_id("buffer", buffer_id)
        except (ValueError, AttributeError):
            raise InvalidTransaction("receipt", "is not the text of a receipt") from None
        return cls(ids[0], unquote(lane), entry_id, ids[1])


class Answers:
    """Answers for all receipts of a process, by one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._watcher = watcher(lambda: RedisConnection(settings.redis.url, settings.redis.timeout))
        self._ledger = _Ledger(settings)
        self._asking = threading.BoundedSemaphore(_ASKING)

    def status(self, receipt: Receipt) -> Whereabouts:
        """How far a transaction got: what Redis knows, else what the ledger knows."""
        with self._asking:
            found = self._in_redis(receipt)
            if found is not None:
                return found
            return self._ledger.ask(receipt.id) or (UNKNOWN if receipt.entry_id else _DELAYED)

    def _in_redis(self, receipt: Receipt) -> Whereabouts | None:
        connection = self._pool.take()
        try:
            return whereabouts.in_redis(
                connection, self._lane(receipt), receipt.id, receipt.entry_id, receipt.buffer
            )
        except RedisRefused as refused:
            raise RedisUnavailable(f"Redis cannot be asked: {refused}") from None
        finally:
            self._pool.give(connection)

    def wait(self, receipt: Receipt, until: str, timeout: float | None) -> Whereabouts:
        """Wait for a note about a transaction; look now and then in case none comes."""
        end = None if timeout is None else time.monotonic() + timeout
        lane = self._lane(receipt)
        waiter = Waiter(lane, receipt.buffer, receipt.id, receipt.entry_id)
        look = _LOOK
        with self._watcher.waiting(waiter, self._last_note(lane)):
            while True:
                # Asked after the watcher listens: a note is either found here or heard there.
                reached = self.status(receipt)
                left = look if end is None else min(look, end - time.monotonic())
                look = min(_LOOK_LEAST, look * 2)
                if reached.decided or left <= 0:
                    return reached
                told = waiter.wait(left)
                if told is not None:
                    return whereabouts.from_told(told)

    def _last_note(self, lane: Lane) -> str:
        with self._asking:
            return self._newest(lane)

    def _newest(self, lane: Lane) -> str:
        connection = self._pool.take()
        try:
            found = connection.call("XREVRANGE", lane.commits, "+", "-", "COUNT", 1)
        except RedisRefused as refused:
            raise RedisUnavailable(f"Redis cannot be asked: {refused}") from None
        finally:
            self._pool.give(connection)
        return found[0][0].decode() if found else "0-0"

    def _lane(self, receipt: Receipt) -> Lane:
        return Lane(self.settings.namespace, receipt.lane)

    def close(self) -> None:
        """Close what nobody uses at the moment."""
        self._watcher.close()
        self._pool.close()
        self._ledger.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        self._pool.drop()
        self._ledger.drop()
        self._asking = threading.BoundedSemaphore(_ASKING)


class _Ledger:
    """A session for questions to the ledger, opened when there is one and shared by all threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.database
        self._lock = threading.Lock()
        self._database = self._new()

    def _new(self) -> Database:
        return Database(self._settings, Progress(), application="processor receipts")

    def ask(self, transaction_id: str) -> Whereabouts | None:
        with self._lock:
            for fresh in (False, True):
                if fresh or not self._database.alive:
                    self._database.connect()
                try:
                    return whereabouts.in_database(self._database, transaction_id)
                except DatabaseUnavailable:
                    # An idle session is ended by the server; one question on a new one.
                    if fresh:
                        raise
                except DatabaseError as error:
                    raise DatabaseUnavailable(f"the ledger cannot be read: {error}") from None
        return None

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def drop(self) -> None:
        self._database.drop()
        self._lock = threading.Lock()
        self._database = self._new()


_DELAYED = Whereabouts("scheduled")
_current: Answers | None = None


def _answers() -> Answers:
    global _current
    settings = config.current()
    if _current is None or _current.settings is not settings:
        close()
        _current = Answers(settings)
    return _current


def close() -> None:
    """Close the connections over which receipts were asked; the next question opens others."""
    if _current is not None:
        _current.close()


def _after_fork() -> None:
    if _current is not None:
        _current.drop()


os.register_at_fork(after_in_child=_after_fork)
