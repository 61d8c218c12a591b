"""Hears on behalf of all waiters of a process: one thread, one connection.

A thousand waiters cost one blocking read. It reads commit notes and, while somebody waits for
replicas, what rings when one of them got further. The thread starts with the first waiter and ends
some seconds after the last; a fork leaves it behind.
"""

from __future__ import annotations

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

_BLOCK = 1.0
_AWAY = 0.2
#: Whoever waits again within this time finds its lane still being read.
_LINGER = 5.0


class NoteListener:
    """Reads the notes of all lanes on which somebody waits."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ring = f"{settings.namespace}:replayed"
        self._redis: RedisConnection | None = None
        self._pause = threading.Event()
        self._left = 0.0
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._crowds: dict[Lane, Waiters] = {}
        self._cursors: dict[Lane, str] = {}
        self._rung = ""
        self._followed: set[Lane] = set()
        self._thread: threading.Thread | None = None
        self._joined = False

    @contextmanager
    def waiting(self, waiter: Waiter, newest: Callable[[Lane], str]) -> Iterator[Waiter]:
        """Let a waiter hear every note from now on; `newest` asks for the last one of a lane."""
        self._join(waiter, newest)
        try:
            yield waiter
        finally:
            with self._lock:
                self._crowds[waiter.sought.lane].remove(waiter)
                self._left = time.monotonic()

    def committed(
        self, waiter: Waiter, reached: StatusLookup, servers: Mapping[str, str]
    ) -> None:
        """A waiter found out itself how far its transaction is: from here on it hears the rest.

        `servers` are those that it was told to be replicas.
        """
        with self._lock:
            told = self._crowds[waiter.sought.lane].commit(waiter, reached, servers=servers)
        if told is not None:
            waiter.tell(told)

    def _join(self, waiter: Waiter, newest: Callable[[Lane], str]) -> None:
        lane, cursor = waiter.sought.lane, ""
        while not self._joins(waiter, cursor):
            cursor = newest(lane)

    def _joins(self, waiter: Waiter, cursor: str) -> bool:
        lane = waiter.sought.lane
        with self._lock:
            new = lane not in self._cursors
            if new and not cursor:
                return False
            self._crowds.setdefault(lane, Waiters()).add(waiter)
            self._cursors.setdefault(lane, cursor)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="processor-watcher", daemon=True
                )
                self._thread.start()
            elif (new or self._unfollowed(waiter)) and self._redis is not None:
                # It blocks on the streams of before; let it look at this one too.
                self._joined = True
                self._redis.abort()
        return True

    def _unfollowed(self, waiter: Waiter) -> bool:
        return waiter.enough is not None and waiter.sought.lane not in self._followed

    def _run(self) -> None:
        redis = self._redis = RedisConnection(
            self._settings.redis.url, self._settings.redis.timeout
        )
        try:
            while cursors := self._wanted():
                try:
                    if self._followed:
                        self._look(redis, list(self._followed))
                    self._listen(redis, cursors)
                except ProcessorError:
                    if not self._joined:
                        self._pause.wait(_AWAY)
                    self._joined = False
        finally:
            redis.close()

    def _wanted(self) -> dict[Lane, str]:
        with self._lock:
            idle = not any(self._crowds.values())
            if idle and time.monotonic() - self._left > _LINGER:
                self._crowds.clear()
                self._cursors.clear()
                self._thread = None
            # Waits for replicas often follow each other; each would cut the connection.
            lasting = self._followed if time.monotonic() - self._left <= _LINGER else set()
            self._followed = {
                lane for lane, crowd in self._crowds.items() if crowd.patient or lane in lasting
            }
            for lane, crowd in self._crowds.items():
                if lane not in self._followed:
                    crowd.forget()
            if not self._followed:
                self._rung = ""
            return dict(self._cursors)

    def _look(self, redis: RedisConnection, lanes: list[Lane]) -> None:
        """See what is told of the replicas: what was told before the last ring, all of it."""
        last: list[Command] = []
        if not self._rung:
            last.append(("XREVRANGE", self._ring, "+", "-", "COUNT", 1))
        asked = [*last, *replica_progress.ask(self._settings.namespace, lanes)]
        replies = checked(redis.calls(asked))
        if last:
            rung = replies.pop(0)
            self._rung = rung[0][0].decode() if rung else "0-0"
        told = list(replica_progress.told(self._settings.replicas, replies))
        with self._lock:
            crowds = [self._crowds.get(lane) for lane in lanes]
            heard = [
                each for crowd, found in zip(crowds, told, strict=True) if crowd
                for each in crowd.confirm(found)
            ]  # fmt: skip
        for waiter, reached in heard:
            waiter.tell(reached)

    def _listen(self, redis: RedisConnection, cursors: dict[Lane, str]) -> None:
        after = {lane.commits: cursor for lane, cursor in cursors.items()}
        if self._followed:
            after[self._ring] = self._rung
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
                self._rung = entries[-1][0].decode()
            else:
                self._hear(lane, entries)

    def _hear(self, lane: Lane, entries: list[Any]) -> None:
        found = []
        for _, fields in entries:
            try:
                found.append(commit_notes.read(fields))
            except (KeyError, ValueError):
                continue
        with self._lock:
            if lane in self._cursors:
                self._cursors[lane] = entries[-1][0].decode()
            crowd = self._crowds.get(lane)
            heard = [each for note in found for each in (crowd.hear(note) if crowd else ())]
        for waiter, told in heard:
            waiter.tell(told)

    def close(self) -> None:
        """End the thread if nobody waits; it would end by itself some seconds later."""
        with self._lock:
            self._left = float("-inf")
            thread, redis = self._thread, self._redis
            if any(self._crowds.values()) or thread is None or redis is None:
                return
            self._joined = True
            redis.abort()
        thread.join(1.0)

    def forget(self) -> None:
        """In a forked child: the parent's thread and connection are not ours."""
        self._begin()
        if self._redis is not None:
            self._redis.drop()
