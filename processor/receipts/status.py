"""The answer to the question how far a transaction got, and what the question names (P8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from processor.buffer.lane import Lane
from processor.connections.wal_position import Position

State = Literal[
    "accepted", "scheduled", "retrying", "parked", "committed", "replicated", "dead", "discarded",
    "lost", "unknown",
]  # fmt: skip
_DECIDED = ("committed", "replicated", "dead", "discarded", "lost")


@dataclass(frozen=True, slots=True)
class StatusLookup:
    """How far a transaction got.

    `state` is accepted, scheduled, retrying, parked, committed, replicated, dead, discarded, lost
    (in a failover, or with its stream in Redis) or unknown. `position` and `at` (Unix seconds) are
    those of the commit; if only the ledger knows it, the position is an upper bound. `reason` says
    why it died or was lost,
    `attempt` and `next_try` (Unix seconds) belong to failed attempts. `replicas` says of each
    replica whether it has replayed the commit, nearest first. A transaction is replicated when all
    replicas have it that count and are not lost.
    """

    state: State
    position: Position | None = None
    at: float | None = None
    reason: str = ""
    attempt: int = 0
    next_try: float | None = None
    replicas: Mapping[str, bool] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether it is committed, dead, discarded or lost."""
        return self.state in _DECIDED


UNKNOWN = StatusLookup("unknown")


@dataclass(frozen=True, slots=True)
class Target:
    """The transaction that a question is about; `entry_id` is empty if it was delayed."""

    id: str
    lane: Lane
    entry_id: str
    buffer: str


def on_replicas(
    status: StatusLookup, having: Mapping[str, bool], awaited: Sequence[str]
) -> StatusLookup:
    """Return a commit's status with the replicas that have it.

    It is replicated if all of `awaited` have it; without any, it is only committed.
    """
    everywhere = bool(awaited) and all(having[name] for name in awaited)
    return replace(status, state="replicated" if everywhere else "committed", replicas=having)
