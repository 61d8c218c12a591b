"""One thread and one connection that read notes for all waiters of a process.

A thousand waiters cost one blocking read. The thread reads the commit notes of their lanes and,
while any of them waits for replicas, the stream of replica progress. It starts with the first
waiter and ends some seconds after the last. A forked child starts its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from processor.buffer import commit_notes
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import ProcessorError
from processor.receipts import replica_progress
from processor.receipts.status import StatusLookup
from processor.receipts.waiters import Waiter, Waiters

log = logging.getLogger("processor.receipts")

_BLOCK = 1.0
_UNREACHABLE_PAUSE = 0.2
#: A lane is still read for so many seconds after its last waiter left, in case another comes.
_LINGER = 5.0


class NoteListener:
    """Reads the notes of all lanes that have waiters."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._progress_stream = f"{settings.namespace}:replayed"
        self._redis: RedisConnection | None = None
        self._pause = threading.Event()
        self._last_left = 0.0
        self._lock = threading.Lock()
        self._waiters: dict[Lane, Waiters] = {}
        self._cursors: dict[Lane, str] = {}
        self._progress_cursor = ""
        #: The lanes in which waiters wait for replicas.
        self._with_progress: set[Lane] = set()
        self._thread: threading.Thread | None = None
        self._interrupted = False

    @contextmanager
    def waiting(self, waiter: Waiter, newest: Callable[[Lane], str]) -> Iterator[Waiter]:
        """Pass every note from now on to a waiter; `newest` finds the id of a lane's last note."""
        self._join(waiter, newest)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[waiter.target.lane].remove(waiter)
                self._last_left = time.monotonic()

    def record_commit(
        self, waiter: Waiter, status: StatusLookup, servers: Mapping[str, str]
    ) -> None:
        """Record the status that a waiter looked up itself; reports of the rest still reach it.

        `servers` are the servers of the replicas at the time of the look-up.
        """
        with self._lock:
            result = self._waiters[waiter.target.lane].record_commit(
                waiter, status, servers=servers
            )
        if result is not None:
            waiter.finish(result)

    def _join(self, waiter: Waiter, newest: Callable[[Lane], str]) -> None:
        lane, cursor = waiter.target.lane, ""
        while not self._add(waiter, cursor):
            cursor = newest(lane)

    def _add(self, waiter: Waiter, cursor: str) -> bool:
        """Add a waiter; False if its lane is not being read, so that a cursor is needed first."""
        lane = waiter.target.lane
        with self._lock:
            new = lane not in self._cursors
            if new and not cursor:
                return False
            self._waiters.setdefault(lane, Waiters()).add(waiter)
            self._cursors.setdefault(lane, cursor)
            thread = self._new_thread()
            if thread is None and (new or self._needs_progress(waiter)) and self._redis is not None:
                # The thread blocks on the previous streams; make it include this one.
                self._interrupted = True
                self._redis.abort()
        if thread is not None:
            # Not under the lock: a green thread would run at once, and wait for it.
            thread.start()
        return True

    def _new_thread(self) -> threading.Thread | None:
        """Return a thread for the caller to start; None if one runs or is about to."""
        thread = self._thread
        if thread is not None and (thread.ident is None or thread.is_alive()):
            return None
        self._thread = threading.Thread(target=self._run, name="processor-watcher", daemon=True)
        return self._thread

    def _needs_progress(self, waiter: Waiter) -> bool:
        return waiter.enough is not None and waiter.target.lane not in self._with_progress

    def _run(self) -> None:
        redis = self._redis = RedisConnection(
            self._settings.redis.url, self._settings.redis.timeout
        )
        log.debug("reading commit notes for the first waiter")
        try:
            while cursors := self._next_cursors():
                try:
                    if self._with_progress:
                        self._read_progress(redis, list(self._with_progress))
                    self._read_notes(redis, cursors)
                except ProcessorError as error:
                    if not self._interrupted:
                        log.debug("retrying to read commit notes: %s", error)
                        self._pause.wait(_UNREACHABLE_PAUSE)
                    self._interrupted = False
        finally:
            redis.close()
            log.debug("no more waiters: commit notes are no longer read")

    def _next_cursors(self) -> dict[Lane, str]:
        """Return where to read on in each lane; empty when the thread is to end."""
        with self._lock:
            idle = not any(self._waiters.values())
            if idle and time.monotonic() - self._last_left > _LINGER:
                self._waiters.clear()
                self._cursors.clear()
                self._thread = None
            # Waits for replicas often follow each other; each would interrupt the connection.
            linger = time.monotonic() - self._last_left <= _LINGER
            lasting = self._with_progress if linger else set()
            self._with_progress = {
                lane for lane, waiters in self._waiters.items()
                if waiters.for_replicas or lane in lasting
            }  # fmt: skip
            for lane, waiters in self._waiters.items():
                if lane not in self._with_progress:
                    waiters.forget_progress()
            if not self._with_progress:
                self._progress_cursor = ""
            return dict(self._cursors)

    def _read_progress(self, redis: RedisConnection, lanes: list[Lane]) -> None:
        """Read how far the replicas are: everything published before the last entry read."""
        last: list[Command] = []
        if not self._progress_cursor:
            last.append(("XREVRANGE", self._progress_stream, "+", "-", "COUNT", 1))
        asked = [*last, *replica_progress.ask(self._settings.namespace, lanes)]
        replies = checked(redis.calls(asked))
        if last:
            entries = replies.pop(0)
            self._progress_cursor = entries[0][0].decode() if entries else "0-0"
        progress = list(replica_progress.parse(self._settings.replicas, replies))
        with self._lock:
            of_lanes = [self._waiters.get(lane) for lane in lanes]
            finished = [
                each for waiters, found in zip(of_lanes, progress, strict=True) if waiters
                for each in waiters.record_progress(found)
            ]  # fmt: skip
        for waiter, result in finished:
            waiter.finish(result)

    def _read_notes(self, redis: RedisConnection, cursors: dict[Lane, str]) -> None:
        after = {lane.commits: cursor for lane, cursor in cursors.items()}
        if self._with_progress:
            after[self._progress_stream] = self._progress_cursor
        reply = redis.calls(
            [("XREAD", "COUNT", 500, "BLOCK", int(_BLOCK * 1000), "STREAMS", *after,
              *after.values())],
            block=_BLOCK,
        )[0]  # fmt: skip
        if isinstance(reply, ProcessorError):
            raise reply
        lanes = {lane.commits: lane for lane in cursors}
        for name, entries in reply or ():
            lane = lanes.get(name.decode())
            if lane is None:
                self._progress_cursor = entries[-1][0].decode()
            else:
                self._pass_on(lane, entries)

    def _pass_on(self, lane: Lane, entries: list[Any]) -> None:
        notes = []
        for _, fields in entries:
            try:
                notes.append(commit_notes.parse(fields))
            except (KeyError, ValueError):
                continue
        with self._lock:
            if lane in self._cursors:
                self._cursors[lane] = entries[-1][0].decode()
            waiters = self._waiters.get(lane)
            finished = [each for note in notes for each in (waiters.read(note) if waiters else ())]
        for waiter, result in finished:
            waiter.finish(result)

    def close(self) -> None:
        """End the thread now if it has no waiters; otherwise it ends seconds after the last."""
        with self._lock:
            self._last_left = float("-inf")
            thread, redis = self._thread, self._redis
            if any(self._waiters.values()) or thread is None or redis is None:
                return
            self._interrupted = True
            redis.abort()
        thread.join(1.0)

    def drop(self) -> None:
        """Forget the connection without closing it, in a forked child."""
        if self._redis is not None:
            self._redis.drop()
