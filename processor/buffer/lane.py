"""A lane: the names of its keys, and which lane a transaction goes to.

This is the list of every key of a buffer, which is one site's Redis with all its lanes. Every key
begins with the namespace. The keys of a lane carry its name as a hash tag, so that a lane lives on
one node of a cluster.

============================== ======== ===========================================================
<ns>:buffer                    string   identity of this buffer, random, written once (rule 1)
<ns>:database                  string   the database that this buffer is drained into (rule 94)
<ns>:lanes                     set      every lane ever written (rule 7)
<ns>:partitions                hash     queue -> number of lanes it is written to (rule 7)
<ns>:paused                    hash     queue -> end of its pause, Unix seconds, 0 for no end
<ns>:resumed                   hash     lane -> count; an operator lifted a systemic pause
<ns>:state:<instance>          string   state of a processor as JSON, expiring
<ns>:{<lane>}:stream           stream   entries: v (envelope version), tx (the transaction)
<ns>:{<lane>}:scheduled        zset     delayed transactions by due time (`delayed`)
<ns>:{<lane>}:parked           hash     id -> entry held back or to be retried (`parked`)
<ns>:{<lane>}:blocked          zset     the waiting lines of keys (`waiting_lines`)
<ns>:{<lane>}:retry            zset     id -> when to apply it from `:parked` (`parked`)
<ns>:{<lane>}:commits          stream   one note per committed batch, bounded (`commit_notes`)
<ns>:{<lane>}:pruned           string   accept time (ms) up to which the ledger was pruned (rule 23)
<ns>:{<lane>}:replayed         hash     replica -> its position in this lane (`replica_status`)
============================== ======== ===========================================================

The keys of replicas are listed in `replica_status`, those of pending writes in `overlay`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processor.transaction.encoding import Encoded

_PARTS = (
    "stream", "scheduled", "parked", "blocked", "retry", "commits", "pruned", "replayed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lane:
    """The names of one lane's keys."""

    namespace: str
    name: str
    stream: str = field(init=False)
    scheduled: str = field(init=False)
    parked: str = field(init=False)
    blocked: str = field(init=False)
    retry: str = field(init=False)
    commits: str = field(init=False)
    pruned: str = field(init=False)
    replayed: str = field(init=False)

    def __post_init__(self) -> None:
        for part in _PARTS:
            object.__setattr__(self, part, f"{self.namespace}:{{{self.name}}}:{part}")

    @property
    def queue(self) -> str:
        """The queue of which this lane is a partition."""
        return self.name.rpartition(":")[0]


def lane_name(queue: str, partitions: int, encoded: Encoded) -> str:
    """Return the name of the lane that a transaction goes to.

    Its first key chooses the partition; without keys its id does (rule 24).
    """
    if partitions == 1:
        return f"{queue}:0"
    chooser = encoded.keys[0] if encoded.keys else encoded.id
    return f"{queue}:{zlib.crc32(chooser.encode()) % partitions}"
