"""Follows one replica, or all that stream from the primary: a thread that asks and tells.

It asks every `replicas.interval` while something is on its way, and rests otherwise. What it hears
goes into `standing`, and from there into Redis, for whoever waits for a write to be replicated. It
never touches the drain thread's connections, and may hang in a call without anybody noticing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from processor.buffer import replica_status
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection
from processor.connections.wal_position import Position
from processor.errors import DatabaseError, DatabaseUnavailable, ProcessorError, RedisRefused
from processor.replicas.commit_marks import CommitMarks
from processor.replicas.health import ReplicaHealth, set_gauges
from processor.replicas.probes import Probe
from processor.replicas.server_identity import ServerNames
from processor.telemetry import faults
from processor.telemetry.status import Replica, is_current

log = logging.getLogger("processor.replicas")

#: Told again after this long without news, so that others see that somebody still watches.
_REST = 1.0
#: Where nobody streams from the primary, or the role may not see who, it is asked this seldom.
_NOBODY = 10.0
#: The first questions after a rest come quicker than `replicas.interval`, seconds.
_QUICK = 0.005


class Follower:
    """One thread for one source; started and stopped with the drain thread."""

    def __init__(
        self, source: Probe, settings: Settings, marks: CommitMarks, standing: ReplicaHealth,
        further: Callable[[], None],
    ) -> None:  # fmt: skip
        self._source = source
        self._settings = settings
        self._marks = marks
        self._standing = standing
        self._further = further
        self._redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        self._untold: dict[str, tuple[str, Position, list[str]]] = {}
        self._lanes: dict[str, list[str]] = {}
        self._names = ServerNames(settings, self._redis, marks)
        self._told: dict[str, Replica] = {}
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._pace = _QUICK
        self._thread = threading.Thread(target=self._run, name="processor-replicas", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; it leaves its connections behind closed."""
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            # More than once: the call that is to be cut may be just about to begin.
            self.cut()
            self._thread.join(0.02)

    def cut(self) -> None:
        """Have the thread end soon."""
        self._stopped.set()
        self._wake.set()
        self._source.database.abort()
        self._redis.abort()

    def met(self, system: str, timeline: int) -> None:
        """The primary that is written to from now on."""
        self._source.database.newest = system, timeline

    def drop(self) -> None:
        """Forget the connections without closing them, in a forked child."""
        self._source.database.drop()
        self._redis.drop()

    def _run(self) -> None:
        while not self._stopped.is_set():
            answered = False
            try:
                answered = self._ask()
                self._tell()
            except Exception as error:  # A defect must not end the thread.
                log.error("following a replica failed: %s", faults.place(error))
            self._rest(answered)
        self._source.database.close()
        self._redis.close()

    def _ask(self) -> bool:
        tokens = self._marks.lanes()
        try:
            found = self._source.heard(tokens)
        except (DatabaseError, DatabaseUnavailable):
            self._source.database.close()
            found = {}
        # What the answer proves, it proves for lanes that were owned before it was asked, and still
        # are: of another owner's commits it knows nothing.
        owned = self._marks.lanes()
        lanes = sorted({lane for token, lane in tokens.items() if token in owned})
        for name, (position, lsn, server) in found.items():
            if self._standing.begins_anew(name, lsn, server):
                self._names.withdraw(name)
                self._untold.pop(name, None)
                self._lanes.pop(name, None)
            news = self._standing.hear(name, position, lsn) or self._lanes.get(name) != lanes
            if news and position is not None and lanes:
                self._untold[name] = server, position, lanes
                self._lanes[name] = lanes
        self._names.heard = {name: (each.server, each.lsn) for name, each in found.items()}
        for name in self._source.names():
            if name not in found:
                self._standing.miss(name)
        if self._untold:
            self._further()
        return bool(found)

    def _tell(self) -> None:
        namespace = self._settings.namespace
        commands: list[Command] = []
        for name, (server, position, names) in self._untold.items():
            lanes = [Lane(namespace, each) for each in names]
            commands += replica_status.publish_position(
                namespace, name, server, position, lanes, time.time()
            )
        # Refused by a full Redis or unheard: what was not told now is told with the next words.
        with contextlib.suppress(ProcessorError):
            # Words of a server count only while its name is told to stand for it.
            for name in self._names.tell():
                self._lanes.pop(name, None)
            if any(map(self._is_passed_over, self._untold)):
                # Who hears that his write is there may read there: no more told away by then.
                self._tell_states(namespace)
            if commands and not any(
                isinstance(reply, RedisRefused) for reply in self._redis.calls(commands)
            ):
                self._untold.clear()
            self._tell_states(namespace)

    def _tell_states(self, namespace: str) -> None:
        known = replica_status.replicas(self._redis, namespace)
        states = {name: self._standing.replica(name) for name in self._source.names()}
        set_gauges(states)
        words = {
            name: state for name, state in states.items() if name not in self._names.taken
            and (state.state == "lost" or not self._is_lost_to_others(name, known.get(name)))
        }  # fmt: skip
        if words:
            self._redis.calls([replica_status.publish(namespace, *each) for each in words.items()])
            self._told |= words

    def _is_passed_over(self, name: str) -> bool:
        """Whether nobody reads from a replica, by what was told of it last."""
        told = self._told.get(name)
        return told is None or told.state in ("away", "lost")

    def _is_lost_to_others(self, name: str, known: Replica | None) -> bool:
        """Another processor found it lost, by commits of which we know nothing, and says when not.

        Unless that one is gone, and we have commits of our own to judge by.
        """
        if known is None or known.state != "lost" or known == self._told.get(name):
            return False
        return self._marks.newest() is None or is_current(known.told, time.time())

    def _rest(self, answered: bool) -> None:
        if not answered:
            self._stopped.wait(_REST if self._source.names() else _NOBODY)
            return
        self._wake.clear()
        # Before looking: a mark that is added from now on rings.
        self._marks.await_next(self._wake.set)
        if any(map(self._standing.owes, self._source.names())):
            self._pace = min(self._settings.replicas.interval, self._pace * 2)
            self._pause(self._pace)
        elif not self._stopped.is_set():
            self._wake.wait(_REST)
            self._pace = _QUICK

    def _pause(self, seconds: float) -> None:
        # New commits are no reason to ask sooner.
        try:
            if self._source.rest(seconds):
                return
        except DatabaseUnavailable:
            self._source.database.close()
        self._stopped.wait(seconds)
