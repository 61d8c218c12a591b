"""Waits for commit notes on behalf of all waiters of a process: one thread, one connection.

A thousand waiters cost one blocking read. The thread starts with the first waiter and ends some
seconds after the last; a fork leaves it behind.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from processor import notes, parked
from processor.buffer import Lane
from processor.errors import ProcessorError
from processor.notes import Note, Told
from processor.redis_connection import RedisConnection

_BLOCK = 1.0
_AWAY = 0.2
#: Whoever waits again within this time finds its lane still being read.
_LINGER = 5.0


class Waiter:
    """One transaction that somebody waits for."""

    __slots__ = ("_entry_id", "_event", "buffer", "id", "lane", "order", "told")

    def __init__(self, lane: Lane, buffer_id: str, transaction_id: str, entry_id: str) -> None:
        self.lane = lane
        self.buffer = buffer_id
        self.told: Told | None = None
        self.id = transaction_id
        self.order = parked.order(entry_id) if entry_id else b""
        self._entry_id = entry_id
        self._event = threading.Event()

    def hear(self, note: Note) -> None:
        """Take what a note says."""
        told = note.tells(self.id, self._entry_id) if note.buffer == self.buffer else None
        if told is not None:
            self.told = told
            self._event.set()

    def wait(self, timeout: float | None) -> Told | None:
        """What was told within `timeout` seconds."""
        self._event.wait(timeout)
        return self.told


class Crowd:
    """The waiters of one lane, so sorted that a note finds its own among thousands."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[Waiter]] = {}
        self._in_order: list[tuple[bytes, int, Waiter]] = []

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def add(self, waiter: Waiter) -> None:
        """Let a waiter hear."""
        self._by_id.setdefault(waiter.id, []).append(waiter)
        if waiter.order:
            bisect.insort(self._in_order, (waiter.order, id(waiter), waiter))

    def remove(self, waiter: Waiter) -> None:
        """It heard, or waits no longer."""
        same = self._by_id[waiter.id]
        same.remove(waiter)
        if not same:
            del self._by_id[waiter.id]
        if waiter.order:
            del self._in_order[bisect.bisect_left(self._in_order, (waiter.order, id(waiter)))]

    def concerned(self, note: Note) -> list[Waiter]:
        """Those for whom a note may answer."""
        found = [w for i in (*note.also, *note.dead) for w in self._by_id.get(i, ())]
        if note.first:
            start = bisect.bisect_left(self._in_order, (parked.order(note.first),))
            end = bisect.bisect_left(self._in_order, (parked.order(note.last) + b"~",))
            found += [waiter for _, _, waiter in self._in_order[start:end]]
        return found


class Watcher:
    """Reads the notes of all lanes on which somebody waits."""

    def __init__(self, connect: Callable[[], RedisConnection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._waiters: dict[Lane, Crowd] = {}
        self._cursors: dict[Lane, str] = {}
        self._thread: threading.Thread | None = None
        self._redis: RedisConnection | None = None
        self._joined = False
        self._left = 0.0
        self._pause = threading.Event()

    @contextmanager
    def waiting(self, waiter: Waiter, cursor: str) -> Iterator[Waiter]:
        """Let a waiter hear every note behind `cursor`, an id of its lane's notes."""
        self._join(waiter, cursor)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[waiter.lane].remove(waiter)
                self._left = time.monotonic()

    def _join(self, waiter: Waiter, cursor: str) -> None:
        with self._lock:
            new = waiter.lane not in self._cursors
            self._waiters.setdefault(waiter.lane, Crowd()).add(waiter)
            self._cursors.setdefault(waiter.lane, cursor)
            alive = self._thread is not None and self._thread.is_alive()
            if not alive:
                self._thread = threading.Thread(
                    target=self._run, name="processor-watcher", daemon=True
                )
                self._thread.start()
            elif new and self._redis is not None:
                # It blocks on the lanes of before; let it look at this one too.
                self._joined = True
                self._redis.abort()

    def _run(self) -> None:
        redis = self._redis = self._connect()
        try:
            while cursors := self._wanted():
                try:
                    self._listen(redis, cursors)
                except ProcessorError:
                    if not self._joined:
                        self._pause.wait(_AWAY)
                    self._joined = False
        finally:
            redis.close()

    def _wanted(self) -> dict[Lane, str]:
        with self._lock:
            idle = not any(self._waiters.values())
            if idle and time.monotonic() - self._left > _LINGER:
                self._waiters.clear()
                self._cursors.clear()
                self._thread = None
            return dict(self._cursors)

    def _listen(self, redis: RedisConnection, cursors: dict[Lane, str]) -> None:
        streams = [lane.commits for lane in cursors]
        reply = redis.calls(
            [("XREAD", "COUNT", 500, "BLOCK", int(_BLOCK * 1000), "STREAMS", *streams,
              *cursors.values())],
            block=_BLOCK,
        )[0]  # fmt: skip
        if isinstance(reply, ProcessorError):
            raise reply
        lanes = {lane.commits: lane for lane in cursors}
        for stream, entries in reply or ():
            self._hear(lanes[stream.decode()], entries)

    def _hear(self, lane: Lane, entries: list[Any]) -> None:
        found = []
        for _, fields in entries:
            try:
                found.append(notes.read(fields))
            except (KeyError, ValueError):
                continue
        with self._lock:
            if lane in self._cursors:
                self._cursors[lane] = entries[-1][0].decode()
            crowd = self._waiters.get(lane)
            heard = [(w, note) for note in found for w in (crowd.concerned(note) if crowd else ())]
        for waiter, note in heard:
            waiter.hear(note)

    def close(self) -> None:
        """End the thread if nobody waits; it would end by itself some seconds later."""
        with self._lock:
            self._left = float("-inf")
            thread, redis = self._thread, self._redis
            if any(self._waiters.values()) or thread is None or redis is None:
                return
            self._joined = True
            redis.abort()
        thread.join(1.0)

    def forget(self) -> None:
        """In a forked child: the parent's thread and connection are not ours."""
        self._lock = threading.Lock()
        self._waiters.clear()
        self._cursors.clear()
        self._thread = None
        if self._redis is not None:
            self._redis.drop()


_watchers: list[Watcher] = []


def watcher(connect: Callable[[], RedisConnection]) -> Watcher:
    """A watcher that survives a fork of its process."""
    made = Watcher(connect)
    _watchers.append(made)
    return made


def _after_fork() -> None:
    for one in _watchers:
        one.forget()


os.register_at_fork(after_in_child=_after_fork)
