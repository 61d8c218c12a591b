"""The replication watch: follows the commits of the drain until the replicas have replayed them.

The drain reports its sessions and commits here, at a cost of one entry a batch, and asks whether a
commit is where `settle` wants it. After a failover it learns here which commits the old primary may
have confirmed without passing them on (rule 22).
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
from processor.replicas.probes import PrimaryProbe, Probe, ReplicaProbe
from processor.telemetry.status import Replica

#: At most this many ids of commits are remembered that some replicas have not confirmed yet.
_MOST_IDS = 100_000


class ReplicaWatch:
    """All replicas of one processor; `on_progress` is called when one has replayed more."""

    def __init__(self, settings: Settings, instance: str, on_progress: Callable[[], None]) -> None:
        replicas = settings.replicas
        self.marks = CommitMarks()
        #: Whether an entry stays in Redis until the replicas have its commit.
        self.settles_replicated = settings.settle == "replicated"
        self._promotable = tuple(replicas.promotable or replicas.servers)
        self._health = ReplicaHealth(replicas, self.marks, self._promotable)
        #: System identifier and timeline of the primary that is written to.
        self.primary: tuple[str, int] | None = None
        self._unconfirmed: deque[tuple[Position, bytes]] = deque()
        self._ids = 0
        self._forgotten = 0
        probes: list[Probe] = []
        if replicas.tracking and replicas.servers:
            probes = [ReplicaProbe(name, dsn, settings, self.marks, instance)
                      for name, dsn in replicas.servers.items()]  # fmt: skip
        elif replicas.tracking:
            probes = [PrimaryProbe(settings, self.marks, instance)]
        self._followers = [
            Follower(probe, settings, self.marks, self._health, on_progress) for probe in probes
        ]

    @property
    def tracks(self) -> bool:
        """Whether replicas are followed at all."""
        return bool(self._followers)

    # Called with the drain thread's start and end.

    def start(self) -> None:
        """Start the followers."""
        for follower in self._followers:
            follower.start()

    def stop(self, timeout: float) -> None:
        """End the followers within about `timeout` seconds."""
        end = time.monotonic() + timeout
        for follower in self._followers:
            follower.cut()
        for follower in self._followers:
            follower.stop(max(0.1, end - time.monotonic()))

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        for follower in self._followers:
            follower.drop()

    # Called by the drain thread.

    def restore_lost(self, published: dict[str, Replica]) -> bool:
        """Start those replicas as lost that were published as lost; whether there are any."""
        lost = [
            name for name, replica in published.items()
            if replica.state == "lost" and (not self._promotable or name in self._promotable)
        ]  # fmt: skip
        for name in lost:
            self._health.restore_lost(name)
        return bool(lost)

    def inherit(self, before: ReplicaWatch) -> None:
        """Take over from a watch with other settings: a failover may still lose its commits."""
        self.primary = before.primary
        self._unconfirmed = before._unconfirmed
        self._ids, self._forgotten = before._ids, before._forgotten

    def start_session(self, tokens: dict[str, str]) -> None:
        """Set the owned lanes, as token -> lane; commits belong to them from now on."""
        self.marks.start_session(tokens)

    def unconfirmed(self) -> tuple[list[str], int]:
        """Return the ids that left Redis and that not all replicas are known to have.

        Oldest first, each once, with the number of earlier ones whose ids were forgotten.
        """
        ids = (i for _, joined in self._unconfirmed for i in joined.decode().split(","))
        return list(dict.fromkeys(ids)), self._forgotten

    def set_primary(self, system: str, timeline: int) -> None:
        """Set the primary that is written to from now on."""
        if self.primary != (system, timeline):
            self._unconfirmed.clear()
            self._ids = self._forgotten = 0
        self.primary = (system, timeline)
        for follower in self._followers:
            follower.set_primary(system, timeline)

    def remember_removed(self, position: Position, ids: Iterable[str]) -> None:
        """Remember transactions that left Redis until all promotable replicas have them.

        Lost replicas included: one of them may be the one that is promoted.
        """
        if not self.tracks:
            return
        joined = ",".join(ids).encode()
        if not joined:
            # An empty id would make every look-up after a failover fail.
            return
        self._unconfirmed.append((position, joined))
        self._ids += joined.count(b",") + 1
        queue = self._unconfirmed
        names = self._promotable or self._health.names
        while queue and names and self._health.all_have_replayed(queue[0][0], names):
            self._ids -= queue.popleft()[1].count(b",") + 1
            self._forgotten = 0
        while self._ids > _MOST_IDS:
            forgotten = queue.popleft()[1].count(b",") + 1
            self._ids -= forgotten
            self._forgotten += forgotten

    def is_replicated(self, position: Position) -> bool:
        """Whether all promotable replicas have a commit; lost ones do not count (rule 33)."""
        return self._health.have_replayed(position, self._promotable)

    def is_everywhere(self, position: Position) -> bool:
        """Whether all promotable replicas have a commit, lost ones included."""
        return self._health.all_have_replayed(position, self._promotable)

    def states(self) -> dict[str, Replica]:
        """Return the status of each replica now."""
        return {name: self._health.state(name) for name in self._health.names}
