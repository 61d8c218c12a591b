"""Takes pending writes out of the overlay once every server that is read from has them.

A small thread in the processor's process with connections of its own. It asks the ledgers of the
primary and of every replica that is not lost (rule 33); what all of them know, or the primary knows
as dead or discarded, is taken away, and what a failover is told to have left behind. As long as one
cannot be asked, all is kept, whatever that outage lasts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

from processor.buffer import replica_status
from processor.buffer.entry_ids import order
from processor.buffer.overlay import Overlay, Shown
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.connections.wal_position import Position, is_superseded
from processor.connections.wal_queries import insert_position, replayed_lsn
from processor.errors import (
    DatabaseError,
    DatabaseUnavailable,
    ProcessorError,
    RedisRefused,
    RedisUnavailable,
)
from processor.ledger import outcomes
from processor.ledger.outcomes import Recorded
from processor.telemetry import faults
from processor.telemetry.progress import Progress

log = logging.getLogger("processor.runtime")

_PAGE = 500
#: Looked at again after this many seconds: while something went, while nothing does, while there is
#: nothing or a server is away.
_SOON, _LATER, _IDLE = 0.1, 0.25, 1.0


class OverlayCleaner:
    """Started and stopped with the drain thread; never blocks it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._overlay = Overlay(settings)
        self._redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        section = settings.database
        self._primary = PostgresSession(section, Progress(), application="processor-clearing")
        self._replicas = {
            name: PostgresSession(replace(section, dsn=dsn), Progress(),
                           application="processor-clearing", writes=False)
            for name, dsn in settings.replicas.servers.items()
        }  # fmt: skip
        self._connections: list[RedisConnection | PostgresSession] = [
            self._redis, self._primary, *self._replicas.values()
        ]  # fmt: skip
        self._stopping = threading.Event()
        self._far = "-"
        self._thread = threading.Thread(target=self._run, name="processor-clearing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; it leaves its connections behind closed."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join(min(timeout, 0.2))
        if self._thread.is_alive():
            # It may wait for a server that does not answer.
            for each in self._connections:
                each.abort()
            self._thread.join(timeout)

    def drop(self) -> None:
        """In a forked child: the connections are the parent's (P6)."""
        for each in self._connections:
            each.drop()

    def _run(self) -> None:
        delay = 0.0
        while not self._stopping.wait(delay):
            try:
                delay = self.clear()
            except ProcessorError:
                # Whoever needs these servers reports it; what is pending stays.
                delay = _IDLE
            except Exception as error:  # A defect must not end the thread.
                log.error("clearing the overlay failed: %s", faults.place(error))
                delay = _IDLE
        self.close()

    def close(self) -> None:
        """End the connections; the next look opens others."""
        for each in self._connections:
            each.close()

    def clear(self) -> float:
        """Take away what can go; the seconds to wait before the next look.

        From the head on as long as pages have something to go. One page more is looked at further
        down each time, so that what waits for long at the head does not keep the rest.
        """
        gone, after = True, "-"
        some = False
        while gone and not self._stopping.is_set():
            page = self._overlay.page(self._redis, after, _PAGE)
            if not page:
                self._far = "-"
                if self._redis.call("EXISTS", self._overlay.missed):
                    self._lost()
                return _SOON if some else _IDLE
            gone = self._clear_page(page)
            some = some or gone
            after = page[-1].entry_id
        self._look_further(after)
        return _SOON if some else _LATER

    def _look_further(self, after: str) -> None:
        start = self._far if self._far != "-" else after
        page = self._overlay.page(self._redis, start, _PAGE)
        if page:
            self._clear_page(page)
        self._far = page[-1].entry_id if len(page) == _PAGE else "-"

    def _clear_page(self, page: Sequence[Shown]) -> bool:
        ids = [each.id for each in page if each.id]
        on_primary, here = self._on_primary(ids)
        everywhere = set(on_primary)
        lost = self._lost()
        for name, database in self._replicas.items():
            if name not in lost and everywhere:
                everywhere &= self._on(database, list(everywhere)).keys()
        ended = {one for one, known in on_primary.items() if known.outcome != "applied"}
        ended |= self._left_behind([e for e in page if e.id and e.id not in on_primary])
        gone = [each for each in page if not each.id or each.id in everywhere | ended]
        if lost and gone:
            # Before they go: a replica that comes back must not be read until it has them.
            told = [part for name in sorted(lost) for part in (name, str(here))]
            self._redis.call("HSET", self._overlay.missed, *told)
        if gone and everywhere:
            self._tell_how_far(here, self._replicas.keys() - lost)
        self._overlay.hide(self._redis, gone)
        return bool(gone)

    def _tell_how_far(self, here: Position, names: Iterable[str]) -> None:
        """Before they go: what these replicas have, so must who comes in their place (`names`)."""
        told: list[str] = []
        for name in names:
            replayed = replayed_lsn(self._replicas[name])
            if replayed is not None:
                told += name, str(replace(here, lsn=replayed))
        if told:
            self._redis.call("HSET", self._overlay.cleared, *told)

    def _left_behind(self, unknown: Sequence[Shown]) -> set[str]:
        """Those whose commit a failover left behind: no server will have them any more.

        Unless they were submitted again since.
        """
        if not unknown:
            return set()
        told = replica_status.lost_since(
            self._redis, self._settings.namespace, unknown[0].entry_id
        )
        lost = {
            each.id: told[each.id] for each in unknown
            if each.id in told and order(each.entry_id) < order(told[each.id])
        }  # fmt: skip
        return lost.keys() - self._accepted_since(lost.values()) if lost else set()

    def _accepted_since(self, entries: Iterable[str]) -> set[str]:
        """The ids in the log behind the first of these entries."""
        found: set[str] = set()
        after = min(entries, key=order)
        while page := self._overlay.page(self._redis, after, _PAGE):
            found.update(each.id for each in page)
            after = page[-1].entry_id
        return found

    def _on_primary(self, ids: Sequence[str]) -> tuple[dict[str, Recorded], Position]:
        """What the primary's ledger knows, and a position behind all of that."""
        known = self._on(self._primary, ids)
        told = replica_status.primary(self._redis, self._settings.namespace)
        if is_superseded((self._primary.system, self._primary.timeline), told):
            self._primary.close()
            raise DatabaseUnavailable("this primary was left behind by a failover")
        return known, insert_position(self._primary)

    def _on(self, database: PostgresSession, ids: Sequence[str]) -> dict[str, Recorded]:
        try:
            if database.alive:
                # It was perhaps ended since, being idle; then a new one is asked.
                with contextlib.suppress(DatabaseUnavailable):
                    return outcomes.find(database, ids)
            database.connect()
            return outcomes.find(database, ids)
        except DatabaseError as error:
            raise DatabaseUnavailable(f"the ledger cannot be read: {error}") from None

    def _lost(self) -> set[str]:
        """The replicas that are lost; one that is back has to catch up before it is read again."""
        try:
            told = replica_status.replicas(self._redis, self._settings.namespace)
            missed = self._redis.call("HGETALL", self._overlay.missed)
        except RedisRefused as refused:
            raise RedisUnavailable(str(refused)) from None
        lost = {n for n, each in told.items() if each.state == "lost" and n in self._replicas}
        for name, position in zip(missed[::2], missed[1::2], strict=True):
            if name.decode(errors="replace") not in lost:
                self._welcome(name, position)
        return lost

    def _welcome(self, name: bytes, position: bytes) -> None:
        database = self._replicas.get(name.decode(errors="replace"))
        if database is not None:
            if not database.alive:
                database.connect()
            replayed = replayed_lsn(database)
            try:
                missed = Position.parse(position.decode())
            except ValueError:
                # Damaged: it missed nothing that is behind where the primary is now.
                _, here = self._on_primary(())
                self._redis.call("HSET", self._overlay.missed, name, str(here))
                return
            if replayed is None or replayed < missed.lsn:
                return
        self._redis.call("HDEL", self._overlay.missed, name)
