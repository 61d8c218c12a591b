"""Which replicas have a commit, by what the replication watch tells in Redis (see `replication`).

Read in one go by whoever asks how far a write got, for one lane. Only replicas that count are in
it: those of `replicas.servers` or, where none are named, all that are still told of.
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
    """What is told of the replicas.

    `primary` is the server and timeline that are written to; `replicas` are those that count, the
    nearest first, None for one that was never told of; `positions` are how far each has the lane,
    told of the server that has the name now, which
    `servers` tells.
    """

    primary: tuple[str, int] | None
    replicas: Mapping[str, Replica | None]
    positions: Mapping[str, Position]
    servers: Mapping[str, str] = field(default_factory=dict)

    @property
    def awaited(self) -> list[str]:
        """The replicas that one waits for: all but those that are lost (rule 33)."""
        return [n for n, found in self.replicas.items() if not found or found.state != "lost"]

    def readable(self, now: float) -> list[str]:
        """The replicas that can be read from, as far as is told at `now` (Unix seconds)."""
        watched = self.watched(now)
        # Away is old news where nobody follows; lost is for a watch to take back.
        passed = {
            name for name, found in self.replicas.items()
            if found and (found.state == "lost" or (found.state == "away" and name in watched))
        }  # fmt: skip
        return [name for name in self.replicas if name not in passed]

    def watched(self, now: float) -> set[str]:
        """The replicas that somebody follows at `now` (Unix seconds)."""
        return {n for n, found in self.replicas.items() if found and is_current(found.told, now)}

    def having(self, position: Position | None) -> dict[str, bool]:
        """Which replicas are told to have a commit."""
        told = self.positions
        return {
            name: position is not None and name in told and told[name].reaches(position)
            for name in self.replicas
        }

    def left_behind(self, position: Position | None) -> bool:
        """Whether a commit is of before a failover: whatever is told of it may be lost.

        One of a later timeline is not: the drain comes to a new primary before it can tell of it.
        """
        if position is None or self.primary is None:
            return False
        system, timeline = self.primary
        return position.system != system or position.timeline < timeline


def ask(namespace: str, lanes: Sequence[Lane]) -> list[Command]:
    """Ask for what is told of the replicas; `told` reads the replies."""
    return [
        ("GET", f"{namespace}:primary"), ("HGETALL", f"{namespace}:replicas"),
        ("HGETALL", f"{namespace}:servers"),
        *(("HGETALL", lane.replayed) for lane in lanes),
    ]  # fmt: skip


def told(settings: Replicas, replies: Sequence[Any]) -> Iterator[ReplicaProgress]:
    """The replies to `ask`: what is told, for one lane after the other."""
    primary = replica_status.parse_primary(replies[0])
    known = replica_status.parse_replicas(replies[1])
    counting = {name: known.get(name) for name in settings.servers or _recent(settings, known)}
    servers = replica_status.parse_servers(replies[2])
    named = {name: found.server for name, found in servers.items()}
    for reply in replies[3:]:
        positions = replica_status.parse_positions(reply, servers)
        yield ReplicaProgress(primary, counting, positions, named)


def _recent(settings: Replicas, known: Mapping[str, Replica]) -> list[str]:
    # One that was taken away while no watch ran is told of no more, and will never be lost.
    newest = max((found.told for found in known.values()), default=0.0)
    return sorted(n for n, found in known.items() if newest - found.told <= settings.lost_after)
