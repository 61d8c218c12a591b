"""Which server has the name of a replica, as a follower publishes it in Redis.

A name passes to another server when `replicas.servers` changes, or when the server behind it was
rebuilt, perhaps from an older copy. What was published for the previous server is withdrawn first.
While settings are being changed, two processors may use one name for two servers. Then the most
recent change wins, and what the other processor publishes about its own server counts nowhere.
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
from processor.connections.wal_position import Position, is_less, parse_lsn
from processor.errors import RedisRefused
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry.status import is_current

log = logging.getLogger("processor.replicas")

#: Published again after this many seconds, so that others see that it is still meant.
_REPUBLISH = 1.0
_NO_SERVER = NamedServer("", 0.0)


class ServerNames:
    """The names of the replicas of one follower, and the servers behind them."""

    def __init__(self, settings: Settings, redis: RedisConnection, marks: CommitMarks) -> None:
        self._namespace = settings.namespace
        self._overlay = Overlay(settings) if settings.overlay.tables else None
        self._redis = redis
        self._marks = marks
        #: The servers that answered last, by name, each with the LSN it has replayed.
        self.answered: dict[str, tuple[str, str | None]] = {}
        #: Names that another processor has given to another server since.
        self.taken: set[str] = set()
        self._published: dict[str, str] = {}
        self._to_withdraw: set[str] = set()
        self._due = 0.0

    def invalidate(self, name: str) -> None:
        """Withdraw what was published for a name with the next `publish`."""
        self._to_withdraw.add(name)

    def publish(self) -> set[str]:
        """Publish which server each name has; return the names whose progress was withdrawn.

        Raises RedisUnavailable and RedisRefused.
        """
        servers = {name: server for name, (server, _) in self.answered.items()}
        changed = self._to_withdraw or any(self._published.get(n) != s for n, s in servers.items())
        if not changed and time.monotonic() < self._due:
            return set()
        named = replica_status.servers(self._redis, self._namespace)
        own = {n: s for n, s in servers.items() if not self._is_taken(n, s, named.get(n))}
        commands = [each for name in own for each in self._commands(name, own[name], named)]
        replies = self._redis.calls(commands) if commands else []
        withdrawn = self._to_withdraw & own.keys()
        if not any(isinstance(reply, RedisRefused) for reply in replies):
            self._published |= own
            self._to_withdraw -= withdrawn
            self._due = time.monotonic() + _REPUBLISH
        return withdrawn

    def _commands(
        self, name: str, server: str, named: Mapping[str, NamedServer]
    ) -> list[Command]:
        publish = [replica_status.publish_server(self._namespace, name, server, time.time())]
        went_back = name in self._to_withdraw
        if not went_back and named.get(name, _NO_SERVER).server in ("", server):
            return publish
        # Positions of another server no longer count. Positions that this one showed before it went
        # back would, so they are removed.
        own = self._marks.lanes_by_token().values() if went_back else ()
        lanes = [Lane(self._namespace, each) for each in set(own)]
        withdraw = replica_status.withdraw(self._namespace, name, lanes)
        self._log_change(name)
        return withdraw + self._bar_from_reads(name) + publish

    def _bar_from_reads(self, name: str) -> list[Command]:
        """Bar the server from reads until it has replayed the writes gone from the overlay.

        A server that was only restarted has them in its own WAL, whatever link is down.
        """
        if self._overlay is None:
            return []
        cleared = self._redis.call("HGET", self._overlay.cleared, name)
        _, lsn = self.answered[name]
        with contextlib.suppress(ValueError):
            if cleared and lsn and parse_lsn(lsn) < Position.parse(cleared.decode()).lsn:
                return [("HSETNX", self._overlay.missed, name, cleared)]
        return []

    def _log_change(self, name: str) -> None:
        """Log that the server changed: as a warning if it has less than was published."""
        _, lsn = self.answered[name]
        published = replica_status.replicas(self._redis, self._namespace).get(name)
        before = published.lsn if published else None
        with contextlib.suppress(ValueError):
            if is_less(lsn, before):
                log.warning("replica %s went back from %s to %s: from now on its progress is what"
                            " its server shows", name, before, lsn)  # fmt: skip
                return
        log.info("replica %s is another server than before, or was restarted", name)

    def _is_taken(self, name: str, server: str, named: NamedServer | None) -> bool:
        """Whether another processor gave the name to another server after this one published."""
        taken = (
            named is not None and named.server != server and self._published.get(name) == server
            and is_current(named.published, time.time())
        )  # fmt: skip
        if taken and name not in self.taken:
            log.warning("another processor uses the name of replica %s for another server, and its"
                        " setting is the more recent one: make replicas.servers of both equal",
                        name)  # fmt: skip
        (self.taken.add if taken else self.taken.discard)(name)
        return taken
