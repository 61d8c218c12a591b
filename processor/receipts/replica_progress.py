"""Which replicas have a commit, as the replication watch publishes it in Redis.

Asked in one go, for one or more lanes. Only replicas that count are included: those of
`replicas.servers` or, where none is configured, all that are still reported. The keys are those of
`buffer.replica_status`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor.buffer import replica_status
from processor.buffer.lane import Lane
from processor.config.settings import Replicas
from processor.connections.redis_client import Command
from processor.connections.wal_position import Position
from processor.telemetry.status import Replica, is_current


@dataclass(frozen=True, slots=True)
class ReplicaProgress:
    """How far the replicas are in one lane.

    `primary` is the system identifier and timeline that are written to. `replicas` are those that
    count, nearest first; None for a replica that was never reported. `positions` are how far each
    has the lane, as shown by the server that has its name now; `servers` identifies that server.
    """

    primary: tuple[str, int] | None
    replicas: Mapping[str, Replica | None]
    positions: Mapping[str, Position]
    servers: Mapping[str, str] = field(default_factory=dict)

    @property
    def awaited(self) -> list[str]:
        """The replicas that a wait waits for: all but the lost ones (rule 33)."""
        return [n for n, found in self.replicas.items() if not found or found.state != "lost"]

    def readable(self, now: float) -> list[str]:
        """Return the replicas that may be read from, as reported at `now` (Unix seconds)."""
        watched = self.watched(now)
        # An old report of `away` proves nothing any more; `lost` stays until a watch revokes it.
        barred = {
            name for name, found in self.replicas.items()
            if found and (found.state == "lost" or (found.state == "away" and name in watched))
        }  # fmt: skip
        return [name for name in self.replicas if name not in barred]

    def watched(self, now: float) -> set[str]:
        """Return the replicas that some watch follows at `now` (Unix seconds)."""
        return {n for n, found in self.replicas.items() if found and is_current(found.told, now)}

    def having(self, position: Position | None) -> dict[str, bool]:
        """Return for each replica whether it is reported to have a commit."""
        positions = self.positions
        return {
            name: position is not None and name in positions and positions[name].reaches(position)
            for name in self.replicas
        }

    def predates_failover(self, position: Position | None) -> bool:
        """Whether a commit was made before a failover, which may have lost it.

        A commit of a later timeline does not: the drain publishes a new primary before it commits
        there.
        """
        if position is None or self.primary is None:
            return False
        system, timeline = self.primary
        return position.system != system or position.timeline < timeline


def ask(namespace: str, lanes: Sequence[Lane]) -> list[Command]:
    """Return the commands whose replies `parse` reads."""
    return [
        ("GET", f"{namespace}:primary"), ("HGETALL", f"{namespace}:replicas"),
        ("HGETALL", f"{namespace}:servers"),
        *(("HGETALL", lane.replayed) for lane in lanes),
    ]  # fmt: skip


def parse(settings: Replicas, replies: Sequence[Any]) -> Iterator[ReplicaProgress]:
    """Yield the progress in each lane from the replies to `ask`."""
    primary = replica_status.parse_primary(replies[0])
    reported = replica_status.parse_replicas(replies[1])
    counting = {n: reported.get(n) for n in settings.servers or _recent(settings, reported)}
    named = replica_status.parse_servers(replies[2])
    servers = {name: found.server for name, found in named.items()}
    for reply in replies[3:]:
        positions = replica_status.parse_positions(reply, named)
        yield ReplicaProgress(primary, counting, positions, servers)


def _recent(settings: Replicas, reported: Mapping[str, Replica]) -> list[str]:
    # A replica removed while no watch ran is never updated again, nor ever lost: ignore it.
    newest = max((found.told for found in reported.values()), default=0.0)
    return sorted(n for n, found in reported.items() if newest - found.told <= settings.lost_after)
