"""Which server the name of a replica stands for, as one watch tells it in Redis.

A name is given to another server by a change of `replicas.servers`, or because the server behind it
was built anew, from an older copy perhaps. What was told of the one before is taken back first.
While settings are changed, two processors may mean two servers by one name; then who changed it
last is believed, and what the other tells of its own server counts for nobody.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping

from processor.buffer import replica_status
from processor.buffer.lane import Lane
from processor.buffer.overlay import Overlay
from processor.buffer.replica_status import NamedServer
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection
from processor.connections.wal_position import Position, is_less, number
from processor.errors import RedisRefused
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry.status import is_current

log = logging.getLogger("processor.replicas")

#: Told again after this long, so that others see that somebody still means it.
_AGAIN = 1.0


class ServerNames:
    """The names of which one follower tells."""

    def __init__(self, settings: Settings, redis: RedisConnection, marks: CommitMarks) -> None:
        self._namespace = settings.namespace
        self._overlay = Overlay(settings) if settings.overlay.tables else None
        self._redis = redis
        self._marks = marks
        #: The servers that answered just now, and what they have replayed, by their names.
        self.heard: dict[str, tuple[str, str | None]] = {}
        #: Names that another processor gave to another server since.
        self.taken: set[str] = set()
        self._told: dict[str, str] = {}
        self._withdrawn: set[str] = set()
        self._due = 0.0

    def withdraw(self, name: str) -> None:
        """What was told of a replica is true no more."""
        self._withdrawn.add(name)

    def tell(self) -> set[str]:
        """Tell which server each name stands for; of which what was told before was taken back.

        Raises RedisUnavailable and RedisRefused.
        """
        servers = {name: server for name, (server, _) in self.heard.items()}
        changed = self._withdrawn or any(self._told.get(n) != s for n, s in servers.items())
        if not changed and time.monotonic() < self._due:
            return set()
        known = replica_status.servers(self._redis, self._namespace)
        mine = {n: s for n, s in servers.items() if not self._is_taken(n, s, known.get(n))}
        commands = [word for name in mine for word in self._words(name, mine[name], known)]
        replies = self._redis.calls(commands) if commands else []
        back = self._withdrawn & mine.keys()
        if not any(isinstance(reply, RedisRefused) for reply in replies):
            self._told |= mine
            self._withdrawn -= back
            self._due = time.monotonic() + _AGAIN
        return back

    def _words(self, name: str, server: str, known: Mapping[str, NamedServer]) -> list[Command]:
        words = [replica_status.publish_server(self._namespace, name, server, time.time())]
        if name not in self._withdrawn and known.get(name, _NOBODY).server in ("", server):
            return words
        # The words of another server do not count; what this one showed before it went back would.
        own = self._marks.lanes().values() if name in self._withdrawn else ()
        lanes = [Lane(self._namespace, each) for each in set(own)]
        before = replica_status.withdraw(self._namespace, name, lanes)
        self._say(name)
        return before + self._refuse(name) + words

    def _refuse(self, name: str) -> list[Command]:
        """Have nobody read from a server that lacks what is pending no more, until it has it.

        One that was only started anew has that in its own log, whatever link is down.
        """
        if self._overlay is None:
            return []
        told = self._redis.call("HGET", self._overlay.cleared, name)
        _, lsn = self.heard[name]
        with contextlib.suppress(ValueError):
            if told and lsn and number(lsn) < Position.parse(told.decode()).lsn:
                return [("HSETNX", self._overlay.missed, name, told)]
        return []

    def _say(self, name: str) -> None:
        """Loudly if the replica has less than it was told to have."""
        _, lsn = self.heard[name]
        told = replica_status.replicas(self._redis, self._namespace).get(name)
        before = told.lsn if told else None
        with contextlib.suppress(ValueError):
            if is_less(lsn, before):
                log.warning("replica %s went back from %s to %s: it counts by what it shows from"
                            " now on", name, before, lsn)  # fmt: skip
                return
        log.info("replica %s is another server than before, or was started anew", name)

    def _is_taken(self, name: str, server: str, known: NamedServer | None) -> bool:
        """Whether another processor means another server since we told which one we mean."""
        taken = (
            known is not None and known.server != server and self._told.get(name) == server
            and is_current(known.published, time.time())
        )  # fmt: skip
        if taken and name not in self.taken:
            log.warning("replica %s is another server to another processor, which is believed:"
                        " see replicas.servers of both", name)  # fmt: skip
        (self.taken.add if taken else self.taken.discard)(name)
        return taken


_NOBODY = NamedServer("", 0.0)
