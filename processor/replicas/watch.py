"""The replication watch: follows what the drain commits until the replicas have replayed it.

The drain reports sessions and commits here, at a cost of one entry a batch, and asks whether a
commit is where `settle` wants it. After a failover it hears from here which commits the old primary
had confirmed to nobody else (rule 22).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from processor.config.settings import Settings
from processor.connections.wal_position import Position
from processor.replicas.commit_marks import CommitMarks
from processor.replicas.follower import Follower
from processor.replicas.health import ReplicaHealth
from processor.replicas.probes import Probe, Server, Streaming
from processor.telemetry.status import Replica

#: Ids of commits that not all replicas have confirmed yet are remembered up to this many.
_REMEMBERED = 100_000


class ReplicaWatch:
    """All replicas of one processor. `further` is called when one of them got further."""

    def __init__(self, settings: Settings, instance: str, further: Callable[[], None]) -> None:
        replicas = settings.replicas
        self.marks = CommitMarks()
        self.replicates = settings.settle == "replicated"
        self._promotable = tuple(replicas.promotable or replicas.servers)
        self._standing = ReplicaHealth(replicas, self.marks, self._promotable)
        #: System identifier and timeline of the primary that is written to.
        self.primary: tuple[str, int] | None = None
        self._unconfirmed: deque[tuple[Position, bytes]] = deque()
        self._count = 0
        self._unnamed = 0
        sources: list[Probe] = []
        if replicas.tracking and replicas.servers:
            sources = [Server(name, dsn, settings, self.marks, instance)
                       for name, dsn in replicas.servers.items()]  # fmt: skip
        elif replicas.tracking:
            sources = [Streaming(settings, self.marks, instance)]
        self._followers = [
            Follower(source, settings, self.marks, self._standing, further) for source in sources
        ]

    @property
    def tracks(self) -> bool:
        """Whether replicas are followed at all."""
        return bool(self._followers)

    # What the worker does.

    def start(self) -> None:
        """Start to follow."""
        for follower in self._followers:
            follower.start()

    def stop(self, timeout: float) -> None:
        """Follow no longer."""
        end = time.monotonic() + timeout
        for follower in self._followers:
            follower.cut()
        for follower in self._followers:
            follower.stop(max(0.1, end - time.monotonic()))

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        for follower in self._followers:
            follower.drop()

    # What the drain reports, and asks.

    def recall(self, replicas: dict[str, Replica]) -> bool:
        """What was told of replicas before: who was lost is lost until it is heard.

        Whether there are such.
        """
        lost = [
            name for name, replica in replicas.items()
            if replica.state == "lost" and (not self._promotable or name in self._promotable)
        ]  # fmt: skip
        for name in lost:
            self._standing.recall(name)
        return bool(lost)

    def inherit(self, before: ReplicaWatch) -> None:
        """Go on for one with other settings: a failover may still lose its commits."""
        self.primary = before.primary
        self._unconfirmed = before._unconfirmed
        self._count, self._unnamed = before._count, before._unnamed

    def owns(self, tokens: dict[str, str]) -> None:
        """From now on commits are of these lanes, given as token -> lane."""
        self.marks.begin(tokens)

    def unconfirmed(self) -> tuple[list[str], int]:
        """Ids of what has left Redis and not all replicas are known to have, oldest first.

        Each once; and of how many before them the ids are forgotten.
        """
        ids = (i for _, some in self._unconfirmed for i in some.decode().split(","))
        return list(dict.fromkeys(ids)), self._unnamed

    def met(self, system: str, timeline: int) -> None:
        """The primary that is written to from now on."""
        if self.primary != (system, timeline):
            self._unconfirmed.clear()
            self._count = self._unnamed = 0
        self.primary = (system, timeline)
        for follower in self._followers:
            follower.met(system, timeline)

    def leave(self, position: Position, ids: Iterable[str]) -> None:
        """Transactions of which nothing stays in Redis: remembered until replicas have them.

        All that may be promoted: whoever is lost can be the one that is promoted.
        """
        if not self.tracks:
            return
        some = ",".join(ids).encode()
        if not some:
            # Nobody's id can be looked up, and an empty one would fail each look of a failover.
            return
        self._unconfirmed.append((position, some))
        self._count += some.count(b",") + 1
        queue = self._unconfirmed
        names = self._promotable or self._standing.names
        while queue and names and self._standing.shows(queue[0][0], names):
            self._count -= queue.popleft()[1].count(b",") + 1
            self._unnamed = 0
        while self._count > _REMEMBERED:
            forgotten = queue.popleft()[1].count(b",") + 1
            self._count -= forgotten
            self._unnamed += forgotten

    def has(self, position: Position) -> bool:
        """Whether all replicas that may be promoted have a commit (those that are lost aside)."""
        return self._standing.has(position, self._promotable)

    def is_everywhere(self, position: Position) -> bool:
        """Whether also those that are lost have it."""
        return self._standing.shows(position, self._promotable)

    def states(self) -> dict[str, Replica]:
        """How each replica stands."""
        return {name: self._standing.replica(name) for name in self._standing.names}

