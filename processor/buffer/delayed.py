"""Delayed transactions: a sorted set by due time, from which the owner moves them into the lane.

The order of a delayed transaction is that of entering its lane, when it is due (rule 24). The
member is the body, so that adding a transaction twice adds one. A later envelope version stands
before the body, on a line of its own; a body is a JSON object, so the two cannot be confused. A
move adds to the lane first and removes afterwards (rule 28); if it is done twice, the ledger
detects the copy.
"""

from __future__ import annotations

import contextlib

import msgspec

from processor import crashpoint
from processor.buffer.lane import Lane
from processor.buffer.stream import add
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import RedisRefused
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode

_PER_MOVE = 500
#: By so many seconds the clock of Redis may be behind the clock that set a due time.
_CLOCK_SKEW = 60.0
#: A clock that goes back is noticed within so many seconds.
_DETECTED = 5.0


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


class _Delay(msgspec.Struct):
    delay: float | None = None


_delays = msgspec.json.Decoder(_Delay)


def hasten(redis: RedisConnection, lane: Lane, by: float, now: float) -> None:
    """Make what was delayed before the clock went back `by` seconds, to `now`, due earlier.

    A due time that the producer named stays as it is. So does what was accepted since.
    """
    start, there = "-inf", 0
    while True:
        # What is made due earlier leaves the range; `there` entries at its start were seen before.
        found = redis.call("ZRANGEBYSCORE", lane.scheduled, start, "+inf", "WITHSCORES",
                           "LIMIT", there, _PER_MOVE)  # fmt: skip
        pairs = [(m, float(due)) for m, due in zip(found[::2], found[1::2], strict=True)]
        earlier = {m: due - by for m, due in pairs if _accepted_before(m, due, now)}
        if earlier:
            changed = (part for m, due in earlier.items() for part in (repr(due), m))
            redis.call("ZADD", lane.scheduled, "XX", *changed)
        if len(pairs) < _PER_MOVE:
            return
        last = pairs[-1][1]
        staying = sum(due == last and m not in earlier for m, due in pairs)
        there = staying + (there if repr(last) == start else 0)
        start = repr(last)


def _accepted_before(member: bytes, due: float, now: float) -> bool:
    """Whether a transaction with a delay was accepted before the clock went back to `now`."""
    try:
        delay = _delays.decode(split(member)[1]).delay
    except (msgspec.MsgspecError, RecursionError):
        return False
    return delay is not None and not now - _DETECTED <= due - delay <= now + _DETECTED


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
