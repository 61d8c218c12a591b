"""How full lanes are, and what is due next in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from processor.buffer.lane import Lane
from processor.buffer.registry import paused
from processor.connections.redis_client import Command, checked

_PER_LANE = 7


@dataclass(frozen=True, slots=True)
class LaneSize:
    """How full a lane is.

    `depth`, `scheduled` and `parked` count entries, `lines` the places in waiting lines. `oldest`
    is the id of the oldest entry in the stream, `oldest_age` its age in seconds by the clock of
    Redis; what is scheduled or parked is not in the stream. `next_due` and `next_retry` are in Unix
    seconds. `parked_oldest_age` is found only by `observation`.
    """

    depth: int
    scheduled: int
    parked: int
    lines: int
    oldest_age: float | None
    oldest: str | None
    next_due: float | None
    next_retry: float | None
    parked_oldest_age: float | None = None


def measure(namespace: str, lanes: Sequence[Lane]) -> list[Command]:
    """Ask how full the lanes are and what is next in each; `measured` reads the replies."""
    commands: list[Command] = [("TIME",), ("HGETALL", f"{namespace}:paused")]
    for lane in lanes:
        commands += [
            ("XLEN", lane.stream),
            ("XRANGE", lane.stream, "-", "+", "COUNT", 1),
            ("ZCARD", lane.scheduled),
            ("HLEN", lane.parked),
            ("ZCARD", lane.blocked),
            ("ZRANGE", lane.scheduled, 0, 0, "WITHSCORES"),
            ("ZRANGE", lane.retry, 0, 0, "WITHSCORES"),
        ]
    return commands


def measured(lanes: Sequence[Lane], replies: list[Any]) -> tuple[set[str], list[LaneSize]]:
    """Return the paused queues and the size of each lane, from the replies to `measure`.

    Raises RedisRefused.
    """
    checked(replies)
    now = int(replies[0][0]) + int(replies[0][1]) / 1e6
    sizes = []
    for number in range(len(lanes)):
        start = 2 + _PER_LANE * number
        depth, head, scheduled, parked, lines, due, retry = replies[start : start + _PER_LANE]
        oldest = head[0][0].decode() if head else None
        age = max(0.0, now - int(oldest.split("-")[0]) / 1000) if oldest else None
        sizes.append(
            LaneSize(depth, scheduled, parked, lines, age, oldest, _score(due), _score(retry))
        )
    return paused(replies[1], now), sizes


def _score(reply: list[bytes]) -> float | None:
    return float(reply[1]) if reply else None
