"""Observes both servers for people, in a thread of its own: once a second while somebody looks.

Pages, metrics and `processor.state()` show what it found. The drain thread may wait for a server
until the deadline of a call, and in an outage it does not ask how full the lanes are; what is shown
must be true meanwhile, and nothing may be shown that is no longer known (rule 97).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from processor.buffer.lane_size import LaneSize
from processor.buffer.observation import BufferObservation, BufferObserver
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseError, ProcessorError, Unavailable
from processor.telemetry import faults
from processor.telemetry.progress import Progress
from processor.telemetry.status import OUTAGES, LaneState, Server, State

log = logging.getLogger("processor.runtime")

#: Seconds between two observations, and for how long they go on after somebody looked.
_EVERY, _WATCHED = 1.0, 60.0
#: What was found longer ago, in seconds, is not shown.
_FRESH = 5.0
#: Seconds that the first look waits for an answer.
_PATIENCE = 1.0
#: The longest wait for a server, in seconds.
_LIMIT = 2.0
_UNKNOWN = Server()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a server answered at `at` (monotonic); `buffer` is only of Redis."""

    at: float
    server: Server = _UNKNOWN
    buffer: BufferObservation | None = None


class Observer:
    """Started and stopped with the drain thread; asks nothing until somebody looks.

    `ask_drain` returns what the drain knows of PostgreSQL, None if it has not asked lately.
    """

    def __init__(self, settings: Settings, ask_drain: Callable[[], Server | None]) -> None:
        self._ask_drain = ask_drain
        self._redis = RedisConnection(settings.redis.url, min(_LIMIT, settings.redis.timeout))
        self._buffer = BufferObserver(settings, settings.drain)
        limits = replace(
            settings.database, connect_timeout=min(_LIMIT, settings.database.connect_timeout),
            call_timeout=min(_LIMIT, settings.database.call_timeout),
        )  # fmt: skip
        self._database = PostgresSession(
            limits, Progress(), application="processor observer", writes=False, primary=True
        )
        self._condition = threading.Condition()
        self._stopping = False
        self._looked = self._asked = float("-inf")
        #: Since when Redis is asked without having answered or failed yet, on the monotonic clock.
        self._asking_since: float | None = None
        self._in_redis = self._in_postgres = _Found(float("-inf"))
        self._thread = threading.Thread(target=self._run, name="processor-observer", daemon=True)

    def start(self) -> None:
        """Start the thread, which waits until somebody looks."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, which closes its connections."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            # Repeated, since the call that is cut may only be about to begin.
            self._redis.abort()
            self._database.abort()
            self._thread.join(0.02)

    def drop(self) -> None:
        """Forget both connections without closing them, in a forked child."""
        self._redis.drop()
        self._database.drop()

    # For those who look.

    def shown(self, state: State, *, patience: float = _PATIENCE) -> State:
        """Return the state with what the servers show now.

        Only the first look waits for an answer, at most `patience` seconds.
        """
        now = time.monotonic()
        with self._condition:
            self._looked = now
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: self._stopping or (now - self._in_redis.at < _FRESH
                and now - self._in_postgres.at < _FRESH), patience,
            )  # fmt: skip
        return self._merged(state, time.monotonic())

    def _merged(self, state: State, now: float) -> State:
        found, since = self._in_redis, self._asking_since
        redis, buffer = found.server, found.buffer
        if now - found.at > _FRESH:
            silent = since is not None and now - since > _FRESH
            redis = Server(False, f"no answer for {_FRESH:.0f} s") if silent else _UNKNOWN
            buffer = None
        postgres = self._ask_drain()
        if postgres is None:
            probed = self._in_postgres
            postgres = probed.server if now - probed.at <= _FRESH else _UNKNOWN
        state = replace(state, redis=redis, postgres=postgres)
        if buffer is None:
            return replace(state, lanes={
                name: _sized(lane, None, 0.0) for name, lane in state.lanes.items()
            })  # fmt: skip
        unowned = LaneState(state.status if state.status in OUTAGES else "standby", state.reason)
        return replace(state, buffer=buffer.identity or state.buffer, lanes={
            name: _sized(state.lanes.get(name, unowned), size, now - found.at)
            for name, size in buffer.lanes.items()
        })  # fmt: skip

    # The thread.

    def _run(self) -> None:
        while self._wanted():
            try:
                self._look_at_redis()
                self._look_at_postgres()
            except Exception as error:
                log.error("observer: failed, and is tried again: %s", faults.place(error))
                self._close()
        self._close()

    def _wanted(self) -> bool:
        with self._condition:
            while not self._stopping:
                now = time.monotonic()
                if now - self._looked > _WATCHED:
                    self._close()
                    self._condition.wait()
                elif now - self._asked < _EVERY:
                    self._condition.wait(_EVERY - (now - self._asked))
                else:
                    self._asked = now
                    return True
            return False

    def _look_at_redis(self) -> None:
        if self._asking_since is None:
            self._asking_since = time.monotonic()
        buffer, server = None, Server(True)
        try:
            buffer = self._buffer.observe(self._redis)
        except ProcessorError as error:
            server = Server(False, str(error))
        self._asking_since = None
        with self._condition:
            self._in_redis = _Found(time.monotonic(), server, buffer)
            self._condition.notify_all()

    def _look_at_postgres(self) -> None:
        server = self._ask_drain() or self._probe_postgres()
        with self._condition:
            self._in_postgres = _Found(time.monotonic(), server)
            self._condition.notify_all()

    def _probe_postgres(self) -> Server:
        """Ask on a session of our own: the drain waits for something else."""
        try:
            self._database.connect()
        except (Unavailable, DatabaseError) as error:
            return Server(False, str(error))
        finally:
            self._database.close()
        return Server(True)

    def _close(self) -> None:
        self._redis.close()
        self._database.close()


def _sized(lane: LaneState, size: LaneSize | None, elapsed: float) -> LaneState:
    """The lane with its size as it was `elapsed` seconds ago, or with none."""
    if size is None:
        return replace(
            lane, depth=None, scheduled=None, parked=None, oldest_age=None, parked_oldest_age=None
        )
    return replace(
        lane, depth=size.depth, scheduled=size.scheduled, parked=size.parked,
        oldest_age=_older(size.oldest_age, elapsed),
        parked_oldest_age=_older(size.parked_oldest_age, elapsed),
    )  # fmt: skip


def _older(age: float | None, elapsed: float) -> float | None:
    return None if age is None else age + elapsed
