"""What the ledgers know of a transaction, asked over one session for each server.

Asked when no commit note answers any more, and whether a replica that no watch follows has a write.
The sessions are opened with the first question and shared by all threads of a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from processor.buffer.entry_ids import order
from processor.config.settings import Database as DatabaseSettings
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.wal_position import Position, is_superseded
from processor.connections.wal_queries import insert_position
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import dead_letters, outcomes, stream_losses
from processor.receipts.status import State, StatusLookup, Target
from processor.telemetry.progress import Progress

T = TypeVar("T")

#: A server that did not answer is not asked again for so many seconds, or twice as long as it took.
_UNREACHABLE = 1.0


class LedgerSessions:
    """The sessions for the ledgers of the primary and of the replicas."""

    def __init__(self, settings: Settings) -> None:
        servers = settings.replicas.servers
        # The caller waits for the answer, and other callers for the session.
        section = replace(settings.database, call_timeout=settings.database.connect_timeout)
        self._primary = _LedgerSession(section, writes=True)
        self._replicas = {
            name: _LedgerSession(replace(section, dsn=dsn), writes=False)
            for name, dsn in servers.items()
        }

    def on_primary(
        self, question: Callable[[PostgresSession], T], written_to: tuple[str, int] | None
    ) -> tuple[T, Position]:
        """Return the primary's answer, and a position behind everything that the answer covers.

        `written_to` is the system identifier and timeline that the drain writes to. Raises
        DatabaseUnavailable, also if only a primary from before a failover can be asked: its ledger
        still has what the failover lost.
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
        """Close the sessions."""
        for each in (self._primary, *self._replicas.values()):
            each.close()

    def drop(self) -> None:
        """Forget the sessions without closing them, in a forked child."""
        for each in (self._primary, *self._replicas.values()):
            each.drop()


_STATES: Mapping[str, State] = {"applied": "committed", "discarded": "discarded"}


def in_ledger(database: PostgresSession, transaction_id: str) -> StatusLookup | None:
    """Return what a ledger knows. Raises DatabaseUnavailable and DatabaseError."""
    row = outcomes.row(database, transaction_id)
    if row is None:
        return None
    if row.outcome != "dead":
        return StatusLookup(_STATES.get(row.outcome, "unknown"), None, row.committed_at.timestamp())
    letters = dead_letters.find(database, transaction_id)
    letters = letters or dead_letters.of_entry(database, row.lane, row.entry_id)
    reason = next((letter.reason for letter in letters), "")
    return StatusLookup("dead", None, row.committed_at.timestamp(), reason)


def lost_entry(database: PostgresSession, target: Target) -> StatusLookup | None:
    """Return that an entry which is nowhere else was lost, if Redis lost its part of the stream."""
    found = stream_losses.of_lane(database, target.buffer, target.lane.name)
    if found is None or not target.entry_id:
        return None
    first, last = order(found.loss.first), order(found.loss.last)
    if not first <= order(target.entry_id) <= last:
        return None
    return StatusLookup("lost", reason="Redis lost it together with its part of the stream")


class _LedgerSession:
    """The session with one server."""

    def __init__(self, settings: DatabaseSettings, *, writes: bool) -> None:
        self._lock = threading.Lock()
        self._unreachable_until, self._why = float("-inf"), ""
        self._database = PostgresSession(
            settings, Progress(), application="processor receipts", writes=writes
        )

    def ask(
        self, question: Callable[[PostgresSession], T], *, newest: tuple[str, int] | None = None
    ) -> T:
        """Return the answer to a question; `newest` is the primary last written to, if known."""
        with self._lock:
            begun = time.monotonic()
            if begun < self._unreachable_until:
                raise DatabaseUnavailable(self._why)
            self._refuse_older(newest)
            try:
                return self._ask(question)
            except DatabaseUnavailable as error:
                took = time.monotonic() - begun
                self._unreachable_until = begun + took + max(_UNREACHABLE, 2 * took)
                self._why = str(error)
                raise

    def _refuse_older(self, newest: tuple[str, int] | None) -> None:
        """Close a session that outlived a failover, and open none with such a server again."""
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
                # The server may have ended an idle session: ask once more on a new one.
                if fresh:
                    raise
            except DatabaseError as error:
                raise DatabaseUnavailable(f"cannot read the ledger: {error}") from None
        raise AssertionError

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def drop(self) -> None:
        self._database.drop()
