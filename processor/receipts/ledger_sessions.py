"""Sessions for questions to the ledgers of the primary and of the replicas.

Opened when there is a question and shared by all threads of a process, one for each server. What no
note tells any more is asked here; so is whether a write has come to a replica that nobody follows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from processor.config.settings import Database as Section
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.wal_position import Position, is_superseded
from processor.connections.wal_queries import insert_position
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import outcomes
from processor.telemetry.progress import Progress

T = TypeVar("T")

#: A server that gave no answer is left alone for so long, or for twice as long as it took; seconds.
_AWAY = 1.0


class LedgerSessions:
    """All ledgers that can tell of a transaction."""

    def __init__(self, settings: Settings) -> None:
        servers = settings.replicas.servers
        # Whoever asks waits for the answer, and others behind it.
        section = replace(settings.database, call_timeout=settings.database.connect_timeout)
        self._primary = _Ledger(section, writes=True)
        self._replicas = {
            name: _Ledger(replace(section, dsn=dsn), writes=False) for name, dsn in servers.items()
        }

    def on_primary(
        self, question: Callable[[PostgresSession], T], written_to: tuple[str, int] | None
    ) -> tuple[T, Position]:
        """The primary's answer, and a position up to which there is nothing that it did not see.

        `written_to` is the server and timeline that the drain writes to. Raises DatabaseUnavailable
        also if only a primary of before a failover can be asked: it knows what was lost with it.
        """
        return self._primary.ask(
            lambda database: (question(database), insert_position(database)), newest=written_to
        )

    def on_replica(self, name: str, transaction_id: str) -> bool | None:
        """Whether a replica has the outcome of a transaction; None if it cannot be asked."""
        try:
            return bool(self._replicas[name].ask(lambda one: outcomes.find(one, [transaction_id])))
        except DatabaseUnavailable:
            return None

    def close(self) -> None:
        """End the sessions."""
        for each in (self._primary, *self._replicas.values()):
            each.close()

    def drop(self) -> None:
        """Forget the sessions without closing them, in a forked child."""
        for each in (self._primary, *self._replicas.values()):
            each.drop()


class _Ledger:
    """The session with one server."""

    def __init__(self, settings: Section, *, writes: bool) -> None:
        self._settings = settings
        self._writes = writes
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._until, self._why = float("-inf"), ""
        self._database = PostgresSession(
            self._settings, Progress(), application="processor receipts", writes=self._writes
        )

    def ask(
        self, question: Callable[[PostgresSession], T], *, newest: tuple[str, int] | None = None
    ) -> T:
        with self._lock:
            begun = time.monotonic()
            if begun < self._until:
                raise DatabaseUnavailable(self._why)
            self._leave_behind(newest)
            try:
                return self._ask(question)
            except DatabaseUnavailable as error:
                took = time.monotonic() - begun
                self._until, self._why = begun + took + max(_AWAY, 2 * took), str(error)
                raise

    def _leave_behind(self, newest: tuple[str, int] | None) -> None:
        """A session may outlive a failover; no other one with such a server is opened."""
        database = self._database
        database.newest = newest
        if database.alive and is_superseded((database.system, database.timeline), newest):
            database.close()

    def _ask(self, question: Callable[[PostgresSession], T]) -> T:
        for fresh in (False, True):
            if fresh or not self._database.alive:
                self._database.connect()
            try:
                return question(self._database)
            except DatabaseUnavailable:
                # An idle session is ended by the server; one question on a new one.
                if fresh:
                    raise
            except DatabaseError as error:
                raise DatabaseUnavailable(f"the ledger cannot be read: {error}") from None
        raise AssertionError

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def drop(self) -> None:
        self._database.drop()
        self._begin()
