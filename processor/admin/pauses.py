"""The lanes of every queue, and the switch that pauses a queue.

A pause is a field of the hash <ns>:paused, which every drain reads: it applies to all processors of
the buffer and costs a submit nothing. A pause with an end expires automatically.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processor.admin import overview
from processor.admin.sessions import OperatorSessions
from processor.admin.wording import suggestion
from processor.buffer import observation
from processor.buffer.lane_size import LaneSize
from processor.buffer.observation import BufferObservation, BufferObserver
from processor.connections.redis_client import RedisConnection
from processor.errors import ProcessorError, RedisRefused


class NoSuchQueue(ProcessorError):
    """No lane belongs to a queue of this name; the message suggests another."""


@dataclass(frozen=True, slots=True)
class QueueLane:
    """One lane with its queue.

    `configured` is False for a queue that left the settings. `paused_until` is in Unix seconds,
    None if the queue is not paused, 0 if the pause lasts until it is resumed. `failing` are the
    kinds of transactions that are held because all of them fail, as the owner published them.
    """

    name: str
    queue: str
    configured: bool
    weight: int
    size: LaneSize
    paused_until: float | None
    failing: Sequence[Mapping[str, Any]] = ()


def lanes(sessions: OperatorSessions) -> list[QueueLane]:
    """Every lane, configured or ever written (rule 7)."""
    with sessions.redis() as redis:
        seen = BufferObserver(sessions.settings).observe(redis, complete=True)
        states = overview.processors(redis, sessions.settings)
    failing = {
        name: lane.get("failing", ())
        for state in states for name, lane in state["lanes"].items() if lane["owner"]
    }  # fmt: skip
    return [_lane(sessions, seen, name, failing.get(name, ())) for name in seen.lanes]


def _lane(
    sessions: OperatorSessions, seen: BufferObservation, name: str,
    failing: Sequence[Mapping[str, Any]],
) -> QueueLane:
    queue = observation.queue_of(name)
    configured = sessions.settings.queues.get(queue)
    weight = configured.weight if configured else 1
    return QueueLane(
        name, queue, configured is not None, weight, seen.lanes[name], seen.paused.get(queue),
        failing,
    )


def pause(sessions: OperatorSessions, queue: str, seconds: float | None) -> float:
    """Pause a queue; returns the end of the pause in Unix seconds, 0 if it has none.

    Raises NoSuchQueue; RedisRefused if Redis is full.
    """
    with sessions.redis() as redis:
        seen = observation.observe(redis, sessions.settings)
        _lanes_of(seen, queue)
        until = 0.0 if seconds is None else seen.now + seconds
        _put(redis, f"{sessions.settings.namespace}:paused", queue, until)
    return until


def _put(redis: RedisConnection, key: str, queue: str, until: float) -> None:
    try:
        redis.call("HSET", key, queue, repr(until))
    except RedisRefused as refused:
        if refused.code != "OOM":
            raise
        raise RedisRefused(
            "OOM", f"{queue} is not paused: Redis has reached its memory limit",
            hint="give it more memory, or wait until its backlog is drained, and pause again",
        ) from None


def resume(sessions: OperatorSessions, queue: str) -> bool:
    """End the pause of a queue, and the pauses that its lanes began after repeated failures.

    False if Redis is full: it removed the operator's pause, but refused to record that the lanes'
    own pauses end. Raises NoSuchQueue.
    """
    namespace = sessions.settings.namespace
    with sessions.redis() as redis:
        names = _lanes_of(observation.observe(redis, sessions.settings), queue)
        redis.call("HDEL", f"{namespace}:paused", queue)
        lifts = [("HINCRBY", f"{namespace}:resumed", name, 1) for name in names]
        refused = [r for r in redis.calls(lifts) if isinstance(r, RedisRefused)]
    # A full Redis permits removals and refuses additions.
    for each in refused:
        if each.code != "OOM":
            raise each
    return not refused


def _lanes_of(seen: BufferObservation, queue: str) -> list[str]:
    names = [name for name in seen.lanes if observation.queue_of(name) == queue]
    if not names:
        raise NoSuchQueue(f"no such queue ({suggestion(queue, seen.queues())})")
    return names
