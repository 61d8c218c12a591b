"""Delayed transactions: a sorted set by due time, from which the owner moves them into the lane.

The order of a delayed transaction is that of entering its lane, when it is due (rule 24). The
member is the body, so that adding a transaction twice adds one. A later envelope version stands
before the body, on a line of its own; a body is a JSON object, so the two cannot be confused. A
move adds to the lane first and removes afterwards (rule 28); if it is done twice, the ledger
detects the copy.
"""

from __future__ import annotations

import contextlib

from processor import crashpoint
from processor.buffer.lane import Lane
from processor.buffer.stream import add
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import RedisRefused
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode

_PER_MOVE = 500
#: By so many seconds the clock of Redis may be behind the clock that set a due time.
_CLOCK_SKEW = 60.0


def schedule(lane: Lane, body: bytes, due: float) -> Command:
    """Add a transaction that is due at `due`, Unix seconds; a copy does not change the due time."""
    # Without its version, which release 0.1 would take for a part of the body and refuse. All that
    # this release writes can be read as of version 1.
    return ("ZADD", lane.scheduled, "NX", repr(due), body)


def split(member: bytes) -> tuple[bytes, bytes]:
    """Return the envelope version and the body of a member; release 0.1 wrote no version."""
    version, newline, body = member.partition(b"\n")
    return (version, body) if newline and version.isdigit() else (b"1", member)


def suspects(
    redis: RedisConnection, lane: Lane, accepted_to: int, now: float = float("inf")
) -> list[Entry]:
    """Return transactions due by `now` that may have entered the lane up to `accepted_to` before.

    Oldest due time first, as the next move takes them; bodies that are not transactions are
    omitted. The due time is by the clock of a producer or processor, the accept time (ms) by the
    clock of Redis.
    """
    found = redis.call(
        "ZRANGEBYSCORE", lane.scheduled, "-inf", repr(min(now, accepted_to / 1000 + _CLOCK_SKEW)),
        "WITHSCORES", "LIMIT", 0, _PER_MOVE,
    )  # fmt: skip
    entries = []
    for body, due in zip(found[::2], found[1::2], strict=True):
        with contextlib.suppress(Unreadable, UnknownVersion):
            accepted = int(max(0.0, float(due) - _CLOCK_SKEW) * 1000)
            entries.append(decode(f"{accepted}-0", *split(body)))
    return entries


def move(redis: RedisConnection, lane: Lane, now: float) -> int:
    """Move transactions that are due at `now` (Unix seconds) into the lane, oldest first.

    Returns how many were moved. Raises RedisRefused if Redis refuses an entry (OOM); transactions
    moved before stay moved.
    """
    bodies = redis.call(
        "ZRANGEBYSCORE", lane.scheduled, "-inf", repr(now), "LIMIT", 0, _PER_MOVE
    )
    if not bodies:
        return 0
    added = redis.calls([add(lane, body, version) for version, body in map(split, bodies)])
    crashpoint.reach("move-added")
    moved = [
        b for b, reply in zip(bodies, added, strict=True) if not isinstance(reply, RedisRefused)
    ]
    if moved:
        redis.call("ZREM", lane.scheduled, *moved)
    crashpoint.reach("move-removed")
    checked(added)
    return len(moved)
