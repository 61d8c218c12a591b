"""Delayed transactions: a sorted set by due time, from which the owner moves them into the lane.

Order of a delayed transaction is that of entering its lane, when due (rule 24). The bytes are the
member, so that adding one twice is one; a move puts first and removes after (rule 28), and a move
done twice meets the ledger.
"""

from __future__ import annotations

import contextlib

from processor import crashpoint
from processor.buffer.lane import Lane
from processor.buffer.stream import add
from processor.connections.redis_client import Command, RedisConnection
from processor.errors import RedisRefused
from processor.transaction.entry import VERSION, Entry, Unreadable, decode

_MOVED_AT_ONCE = 500
#: By so many seconds the clock of Redis may be behind that by which something is due.
_CLOCKS = 60.0


def schedule(lane: Lane, body: bytes, due: float) -> Command:
    """Add a transaction that is due at `due`, Unix seconds; once more it does not put it off."""
    return ("ZADD", lane.scheduled, "NX", repr(due), body)


def suspects(
    redis: RedisConnection, lane: Lane, mark: int, now: float = float("inf")
) -> list[Entry]:
    """Some of what is due by `now` and may once have entered the lane by `mark`, an accept time.

    Oldest first, as the next move has it; without what is no transaction. Due is by the clocks of
    producers and processors, the accept time (ms) by that of Redis.
    """
    found = redis.call(
        "ZRANGEBYSCORE", lane.scheduled, "-inf", repr(min(now, mark / 1000 + _CLOCKS)),
        "WITHSCORES", "LIMIT", 0, _MOVED_AT_ONCE,
    )  # fmt: skip
    entries = []
    for body, due in zip(found[::2], found[1::2], strict=True):
        with contextlib.suppress(Unreadable):
            accepted = int(max(0.0, float(due) - _CLOCKS) * 1000)
            entries.append(decode(f"{accepted}-0", VERSION, body))
    return entries


def move(redis: RedisConnection, lane: Lane, now: float) -> int:
    """Move what is due at `now` (Unix seconds) into the lane, oldest first; how many were moved.

    Raises RedisRefused if Redis takes no more (OOM); what was moved by then stays moved.
    """
    bodies = redis.call(
        "ZRANGEBYSCORE", lane.scheduled, "-inf", repr(now), "LIMIT", 0, _MOVED_AT_ONCE
    )
    if not bodies:
        return 0
    added = redis.calls([add(lane, body) for body in bodies])
    crashpoint.reach("move-added")
    moved = [
        b for b, reply in zip(bodies, added, strict=True) if not isinstance(reply, RedisRefused)
    ]
    if moved:
        redis.call("ZREM", lane.scheduled, *moved)
    crashpoint.reach("move-removed")
    refused = next((reply for reply in added if isinstance(reply, RedisRefused)), None)
    if refused is not None:
        raise refused
    return len(moved)
