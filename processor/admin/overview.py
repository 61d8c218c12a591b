"""What an operator sees of a buffer: its lanes, the pauses, and what processors say of themselves.

Asked from Redis alone, so that it can be seen while PostgreSQL is away. Hands the commands one
frozen record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from processor.buffer import lane_size, registry
from processor.buffer.lane import Lane
from processor.buffer.lane_size import LaneSize
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused

_SCANNED = 1000


@dataclass(frozen=True, slots=True)
class Overview:
    """One look at a buffer. `paused` says until when, Unix seconds; 0: until it is resumed."""

    identity: str | None
    now: float
    lanes: Mapping[str, LaneSize]
    paused: Mapping[str, float]

    def queues(self) -> list[str]:
        """The names of all queues."""
        return sorted({queue_of(lane) for lane in self.lanes})


def look(redis: RedisConnection, settings: Settings) -> Overview:
    """Look at the buffer once; writes nothing."""
    names = lane_names(redis, settings)
    lanes = [Lane(settings.namespace, name) for name in names]
    replies = redis.calls(lane_size.measure(settings.namespace, lanes))
    paused, sizes = lane_size.measured(lanes, replies)
    pauses = replies[1]
    until = {q.decode(): float(u) for q, u in zip(pauses[::2], pauses[1::2], strict=True)}
    return Overview(
        registry.written_identity(redis, settings.namespace),
        int(replies[0][0]) + int(replies[0][1]) / 1e6,
        dict(zip(names, sizes, strict=True)),
        {queue: until.get(queue, 0.0) for queue in sorted(paused)},
    )


def lane_names(redis: RedisConnection, settings: Settings) -> list[str]:
    """Lanes of the configuration, and those that were ever written (rule 7)."""
    configured = {
        f"{name}:{number}"
        for name, queue in settings.queues.items()
        for number in range(queue.partitions)
    }
    return sorted(configured | set(registry.registered(redis, settings.namespace)))


def clock(redis: RedisConnection) -> float:
    """The time by the clock of Redis, Unix seconds."""
    whole, micro = redis.call("TIME")
    return int(whole) + int(micro) / 1e6


def is_full(redis: RedisConnection) -> bool:
    """Whether Redis has reached its memory limit, if it may be asked: then nobody can tell."""
    (reply,) = redis.calls([("INFO", "memory")])
    if isinstance(reply, RedisRefused):
        return False
    found = dict(row.split(":", 1) for row in reply.decode().splitlines() if ":" in row)
    most = int(found.get("maxmemory", 0))
    return 0 < most <= int(found.get("used_memory", 0))


def queue_of(lane: str) -> str:
    """The queue of which a lane is a partition."""
    return lane.rpartition(":")[0]


def processors(redis: RedisConnection, settings: Settings) -> list[dict[str, Any]]:
    """What each processor of this buffer told last; one that told nothing for long is not there."""
    pattern = f"{settings.namespace}:state:*"
    found: set[bytes] = set()
    cursor: Any = b"0"
    while True:
        cursor, keys = redis.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)
        found.update(keys)
        if cursor in (b"0", 0):
            break
    told = redis.calls([("GET", key) for key in sorted(found)]) if found else []
    states = [json.loads(state) for state in told if isinstance(state, bytes)]
    return sorted(states, key=lambda s: str(s.get("instance", "")))
