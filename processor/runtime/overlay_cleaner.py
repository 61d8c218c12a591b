"""Removes pending writes from the overlay once every server that is read from has them.

A small thread with its own connections. It queries the ledgers of the primary and of every replica
that is not lost (rule 33). A pending write is removed when all of these ledgers have its id, when
the primary has it as dead or discarded, or when a failover is recorded to have lost it. While one
of these servers is unreachable every pending write is kept, however long that lasts. What was never
accepted is found by `overlay_sweep` and removed (rule 105).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterable, Sequence
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
from processor.runtime.overlay_sweep import OverlaySweep
from processor.telemetry import faults, metrics
from processor.telemetry.progress import Progress

log = logging.getLogger("processor.runtime")

_PAGE = 500
#: Seconds before the next look: after some were removed, after none were, and while the overlay is
#: empty or a server is unreachable.
_SOON, _LATER, _IDLE = 0.1, 0.25, 1.0
#: Seconds between two looks for what was never accepted.
_SWEEP = 1.0
_MOST_PAGES = 20


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
        self._scanned_to = "-"
        self._sweep = OverlaySweep(settings, self._overlay, self._in_ledger)
        self._next_sweep = 0.0
        self._thread = threading.Thread(target=self._run, name="processor-clearing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, which closes its connections."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join(min(timeout, 0.2))
        if self._thread.is_alive():
            # The thread may be waiting for a server that does not answer.
            for each in self._connections:
                each.abort()
            self._thread.join(timeout)

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child (P6)."""
        for each in self._connections:
            each.drop()

    def _run(self) -> None:
        delay = 0.0
        while not self._stopping.wait(delay):
            try:
                delay = self.clear()
            except ProcessorError as error:
                # Reported by the threads that need these servers; every pending write is kept.
                log.debug("overlay: nothing is removed, retrying in %.0f s: %s", _IDLE, error)
                delay = _IDLE
            except Exception as error:  # A defect must not end the thread.
                log.error("clearing the overlay failed: %s", faults.place(error))
                delay = _IDLE
        self.close()

    def close(self) -> None:
        """Close the connections; the next `clear` opens others."""
        for each in self._connections:
            each.close()

    def clear(self) -> float:
        """Remove what can be removed; return the seconds to wait before the next time.

        Reads pages from the head for as long as each had something to remove, and then one page
        further down, so that entries that stay at the head for long do not keep later ones.
        """
        delay = self._follow_log()
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP
            self.sweep()
        return delay

    def sweep(self) -> None:
        """Remove a page of what was never accepted, and further pages while there is much."""
        count = 0
        for _ in range(_MOST_PAGES):
            forged = self._sweep.unaccepted(self._redis)
            self._overlay.hide(self._redis, forged)
            count += len(forged)
            if not forged or self._stopping.is_set():
                break
        self._overlay.hide(self._redis, self._sweep.unshown(self._redis))
        elements = self._sweep.remove_orphans(self._redis)
        if count or elements:
            metrics.count("unaccepted", count + elements)
            log.warning("overlay: removed %d records and %d elements of lists that belong to no"
                        " accepted transaction: a program with the credentials of a producer wrote"
                        " them", count, elements)  # fmt: skip

    def _in_ledger(self, ids: Sequence[str]) -> Collection[str]:
        return self._recorded(self._primary, ids)

    def _follow_log(self) -> float:
        removed, after = True, "-"
        some = False
        while removed and not self._stopping.is_set():
            page = self._overlay.page(self._redis, after, _PAGE)
            if not page:
                self._scanned_to = "-"
                if self._redis.call("EXISTS", self._overlay.missed):
                    self._lost_replicas()
                return _SOON if some else _IDLE
            removed = self._clear_page(page)
            some = some or removed
            after = page[-1].entry_id
        self._clear_further(after)
        return _SOON if some else _LATER

    def _clear_further(self, after: str) -> None:
        start = self._scanned_to if self._scanned_to != "-" else after
        page = self._overlay.page(self._redis, start, _PAGE)
        if page:
            self._clear_page(page)
        self._scanned_to = page[-1].entry_id if len(page) == _PAGE else "-"

    def _clear_page(self, page: Sequence[Shown]) -> bool:
        ids = [each.id for each in page if each.id]
        on_primary, position = self._on_primary(ids)
        everywhere = set(on_primary)
        lost = self._lost_replicas()
        for name, database in self._replicas.items():
            if name not in lost and everywhere:
                everywhere &= self._recorded(database, list(everywhere)).keys()
        ended = {each for each, found in on_primary.items() if found.outcome != "applied"}
        ended |= self._lost_commits([e for e in page if e.id and e.id not in on_primary])
        removable = [each for each in page if not each.id or each.id in everywhere | ended]
        # Both before the removal: neither a lost replica that returns, nor a server that takes over
        # the name of another replica, may be read until it has replayed these writes.
        if lost and removable:
            fields = [part for name in sorted(lost) for part in (name, str(position))]
            self._redis.call("HSET", self._overlay.missed, *fields)
        if removable and everywhere:
            self._publish_replayed(position, self._replicas.keys() - lost)
        self._overlay.hide(self._redis, removable)
        if removable:
            log.debug("overlay: removed %d pending writes", len(removable))
        return bool(removable)

    def _publish_replayed(self, primary: Position, names: Iterable[str]) -> None:
        """Publish how far these replicas are, on the timeline of the primary."""
        fields: list[str] = []
        for name in names:
            replayed = replayed_lsn(self._replicas[name])
            if replayed is not None:
                fields += name, str(replace(primary, lsn=replayed))
        if fields:
            self._redis.call("HSET", self._overlay.cleared, *fields)

    def _lost_commits(self, missing: Sequence[Shown]) -> set[str]:
        """The ids whose commit a failover lost, so that no server will ever have them.

        Without those that were submitted again since.
        """
        if not missing:
            return set()
        recorded = replica_status.lost_since(
            self._redis, self._settings.namespace, missing[0].entry_id
        )
        lost = {
            each.id: recorded[each.id] for each in missing
            if each.id in recorded and order(each.entry_id) < order(recorded[each.id])
        }  # fmt: skip
        return lost.keys() - self._accepted_since(lost.values()) if lost else set()

    def _accepted_since(self, entry_ids: Iterable[str]) -> set[str]:
        """The ids in the log after the first of these entries."""
        found: set[str] = set()
        after = min(entry_ids, key=order)
        while page := self._overlay.page(self._redis, after, _PAGE):
            found.update(each.id for each in page)
            after = page[-1].entry_id
        return found

    def _on_primary(self, ids: Sequence[str]) -> tuple[dict[str, Recorded], Position]:
        """The ids that the primary's ledger has, and a position behind all of their commits."""
        found = self._recorded(self._primary, ids)
        newest = replica_status.primary(self._redis, self._settings.namespace)
        if is_superseded((self._primary.system, self._primary.timeline), newest):
            self._primary.close()
            raise DatabaseUnavailable("this primary was left behind by a failover")
        return found, insert_position(self._primary)

    def _recorded(self, database: PostgresSession, ids: Sequence[str]) -> dict[str, Recorded]:
        try:
            if database.alive:
                # The server may have ended this idle session; then another one is opened.
                with contextlib.suppress(DatabaseUnavailable):
                    return outcomes.find(database, ids)
            database.connect()
            return outcomes.find(database, ids)
        except DatabaseError as error:
            raise DatabaseUnavailable(f"the ledger cannot be read: {error}") from None

    def _lost_replicas(self) -> set[str]:
        """The replicas that are lost; those that are not may be read again once they caught up."""
        try:
            published = replica_status.replicas(self._redis, self._settings.namespace)
            missed = self._redis.call("HGETALL", self._overlay.missed)
        except RedisRefused as refused:
            raise RedisUnavailable(str(refused)) from None
        lost = {n for n, each in published.items() if each.state == "lost" and n in self._replicas}
        for name, position in zip(missed[::2], missed[1::2], strict=True):
            if name.decode(errors="replace") not in lost:
                self._readmit(name, position)
        return lost

    def _readmit(self, name: bytes, position: bytes) -> None:
        """Let a replica be read again once it has replayed up to what was removed without it."""
        database = self._replicas.get(name.decode(errors="replace"))
        if database is not None:
            if not database.alive:
                database.connect()
            replayed = replayed_lsn(database)
            try:
                missed = Position.parse(position.decode())
            except ValueError:
                # The record is damaged. Nothing that was removed is behind the primary's present
                # position.
                _, now = self._on_primary(())
                self._redis.call("HSET", self._overlay.missed, name, str(now))
                return
            if replayed is None or replayed < missed.lsn:
                return
        self._redis.call("HDEL", self._overlay.missed, name)
        log.debug("overlay: replica %s may be read again", name.decode(errors="replace"))
