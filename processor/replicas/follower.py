"""A thread that asks one probe how far replicas are, and publishes the answers.

It asks every `replicas.interval` while commits await a replica, and rests otherwise. The answers go
into `health`, and from there into Redis for everything that waits for a write to be replicated. The
thread has connections of its own, so a call that hangs disturbs neither the drain nor a stop.
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
from processor.replicas.health import ReplicaHealth
from processor.replicas.probes import Probe
from processor.replicas.server_identity import ServerNames
from processor.telemetry import faults
from processor.telemetry.status import Replica, is_current

log = logging.getLogger("processor.replicas")

#: Published again after this many seconds without news, so that others see that the watch runs.
_REST = 1.0
#: How often a primary is asked that shows no replica: none streams, or the role may not see them.
_NO_REPLICA_REST = 10.0
#: After a rest the first questions come faster than `replicas.interval`, seconds.
_FIRST_PAUSE = 0.005


class Follower:
    """One thread for one probe; started and stopped with the drain thread.

    `on_progress` is called when one of its replicas has replayed more.
    """

    def __init__(
        self, probe: Probe, settings: Settings, marks: CommitMarks, health: ReplicaHealth,
        on_progress: Callable[[], None],
    ) -> None:  # fmt: skip
        self._probe = probe
        self._settings = settings
        self._marks = marks
        self._health = health
        self._on_progress = on_progress
        self._redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        #: Progress that Redis does not have yet: server, position and lanes, by replica.
        self._unpublished: dict[str, tuple[str, Position, list[str]]] = {}
        self._lanes: dict[str, list[str]] = {}
        self._names = ServerNames(settings, self._redis, marks)
        self._published: dict[str, Replica] = {}
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name="processor-replicas", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread within `timeout` seconds; it closes its connections."""
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            # More than once: the call to be cut may be just about to begin.
            self.cut()
            self._thread.join(0.02)

    def cut(self) -> None:
        """Make the thread end soon, without waiting for it."""
        self._stopped.set()
        self._wake.set()
        self._probe.database.abort()
        self._redis.abort()

    def set_primary(self, system: str, timeline: int) -> None:
        """Set the primary that is written to from now on."""
        self._probe.database.newest = system, timeline

    def drop(self) -> None:
        """Forget the connections without closing them, in a forked child."""
        self._probe.database.drop()
        self._redis.drop()

    def _run(self) -> None:
        while not self._stopped.is_set():
            answered = False
            try:
                answered = self._ask()
                self._publish()
            except Exception as error:  # A bug must not end the thread.
                log.error("following a replica failed: %s", faults.place(error))
            self._rest(answered)
        self._probe.database.close()
        self._redis.close()

    def _ask(self) -> bool:
        tokens = self._marks.lanes_by_token()
        try:
            answers = self._probe.ask(tokens)
        except (DatabaseError, DatabaseUnavailable):
            self._probe.database.close()
            answers = {}
        # The answer proves something only for lanes that were owned before it was asked for and
        # still are; it says nothing about another owner's commits.
        owned = self._marks.lanes_by_token()
        lanes = sorted({lane for token, lane in tokens.items() if token in owned})
        for name, (position, lsn, server) in answers.items():
            if self._health.detect_other_server(name, lsn, server):
                self._names.invalidate(name)
                self._unpublished.pop(name, None)
                self._lanes.pop(name, None)
            advanced = self._health.record_answer(name, position, lsn)
            if (advanced or self._lanes.get(name) != lanes) and position is not None and lanes:
                self._unpublished[name] = server, position, lanes
                self._lanes[name] = lanes
        self._names.answered = {name: (each.server, each.lsn) for name, each in answers.items()}
        for name in self._probe.names():
            if name not in answers:
                self._health.record_no_answer(name)
        if self._unpublished:
            self._on_progress()
        return bool(answers)

    def _publish(self) -> None:
        namespace = self._settings.namespace
        commands: list[Command] = []
        for name, (server, position, names) in self._unpublished.items():
            lanes = [Lane(namespace, each) for each in names]
            commands += replica_status.publish_position(
                namespace, name, server, position, lanes, time.time()
            )
        # A full Redis may refuse, or be unreachable: the next round publishes it again.
        with contextlib.suppress(ProcessorError):
            # Positions of a server count only while Redis has it as the server of its name.
            for name in self._names.publish():
                self._lanes.pop(name, None)
            if any(map(self._is_barred, self._unpublished)):
                # A waiter that learns of its write may read it there: lift the bar first.
                self._publish_states(namespace)
            if commands and not any(
                isinstance(reply, RedisRefused) for reply in self._redis.calls(commands)
            ):
                self._unpublished.clear()
            self._publish_states(namespace)

    def _publish_states(self, namespace: str) -> None:
        in_redis = replica_status.replicas(self._redis, namespace)
        states = {name: self._health.state(name) for name in self._probe.names()}
        news = {
            name: state for name, state in states.items() if name not in self._names.taken
            and (state.state == "lost" or not self._is_lost_to_others(name, in_redis.get(name)))
        }  # fmt: skip
        if news:
            self._redis.calls([replica_status.publish(namespace, *each) for each in news.items()])
            self._published |= news

    def _is_barred(self, name: str) -> bool:
        """Whether a replica is not read from, by the status last published for it."""
        published = self._published.get(name)
        return published is None or published.state in ("away", "lost")

    def _is_lost_to_others(self, name: str, in_redis: Replica | None) -> bool:
        """Whether another processor found the replica lost, and must itself report its return.

        It judged by commits that this processor does not know. If that processor is gone and this
        one has commits of its own to judge by, the report no longer counts.
        """
        if in_redis is None or in_redis.state != "lost" or in_redis == self._published.get(name):
            return False
        return self._marks.newest() is None or is_current(in_redis.told, time.time())

    def _rest(self, answered: bool) -> None:
        if not answered:
            self._stopped.wait(_REST if self._probe.names() else _NO_REPLICA_REST)
            return
        self._wake.clear()
        # Before the check below: a mark that is added from now on wakes the thread.
        self._marks.notify_next(self._wake.set)
        if any(map(self._health.is_behind, self._probe.names())):
            self._pause = min(self._settings.replicas.interval, self._pause * 2)
            self._wait(self._pause)
        elif not self._stopped.is_set():
            self._wake.wait(_REST)
            self._pause = _FIRST_PAUSE

    def _wait(self, seconds: float) -> None:
        # New commits are no reason to ask sooner.
        try:
            if self._probe.wait(seconds):
                return
        except DatabaseUnavailable:
            self._probe.database.close()
        self._stopped.wait(seconds)
