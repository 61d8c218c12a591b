"""What a buffer knows of itself: its identity, its registered lanes, its paused queues."""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Container, Iterable
from typing import Any

from processor.config.settings import NAME
from processor.connections.redis_client import Command, RedisConnection
from processor.errors import InvalidTransaction, RedisRefused
from processor.transaction.ids import canonical_id, derived_id

#: PostgreSQL has room for some 6,000 locks with its default settings.
MOST_LANES = 1_024
_LANE = re.compile(f"{NAME}:[0-9]{{1,4}}").fullmatch


def identity(redis: RedisConnection, namespace: str) -> str:
    """Return the identity of this buffer; the first caller writes it (rule 1)."""
    while (found := written_identity(redis, namespace)) is None:
        # Not SET: with the right to send that, a producer could give the buffer another identity.
        redis.call("SETNX", f"{namespace}:buffer", str(uuid.uuid4()))
    return found


def written_identity(redis: RedisConnection, namespace: str) -> str | None:
    """Return the identity of this buffer, or None if it has none yet; writes nothing."""
    key = f"{namespace}:buffer"
    found = redis.call("GET", key)
    return None if found is None else identity_in(key, found)


def identity_in(key: str, value: bytes) -> str:
    """Return the identity of a buffer from the value of its key."""
    text = value.decode(errors="replace")
    try:
        return canonical_id(key, text)
    except InvalidTransaction:
        # Another program wrote this value. Continue nevertheless: all readers derive the same
        # identity from it.
        return derived_id(f"buffer {text}")


def bound_database(redis: RedisConnection, namespace: str, database: str) -> str | None:
    """Return the database that the buffer is bound to; the first caller binds it (rule 94).

    None while a full Redis does not take the key: it is drained nevertheless (rule 20).
    """
    key = f"{namespace}:database"
    while (found := redis.call("GET", key)) is None:
        try:
            redis.call("SET", key, database, "NX")
        except RedisRefused as refused:
            if refused.code != "OOM":
                raise
            return None
    return str(found.decode(errors="replace"))


def register(namespace: str, lanes: Iterable[str]) -> Command:
    """Register lanes, so that every processor drains them (rule 7)."""
    return ("SADD", f"{namespace}:lanes", *lanes)


def registered(
    redis: RedisConnection, namespace: str, queues: Container[str] = ()
) -> list[str]:
    """Return the names of all lanes ever written, sorted.

    What cannot be the name of a lane was written by another program, and is no lane. Every producer
    may register lanes, and each of them costs a lock in PostgreSQL: of more than MOST_LANES those
    of these queues come first, and the others are left out.
    """
    members = redis.call("SMEMBERS", f"{namespace}:lanes")
    names = (name.decode(errors="replace") for name in members)
    found = sorted(name for name in names if is_lane_name(name))
    if len(found) > MOST_LANES:
        found.sort(key=lambda name: (name.rpartition(":")[0] not in queues, name))
    return found[:MOST_LANES]


def is_lane_name(name: str) -> bool:
    """Whether a text has the form of the name of a lane: queue and partition."""
    return _LANE(name) is not None


def paused(reply: Any, now: float) -> set[str]:
    """Return the queues that are paused at `now` (Unix seconds).

    `reply` is that to HGETALL <ns>:paused.
    """
    return {queue for queue, until in pause_ends(reply).items() if until == 0 or until > now}


def pause_ends(reply: Any) -> dict[str, float]:
    """Return the end of the pause of each queue, 0 for no end; without what is no pause."""
    found = {}
    for queue, until in zip(reply[::2], reply[1::2], strict=True):
        with contextlib.suppress(ValueError):
            if math.isfinite(end := float(until)):
                found[queue.decode()] = end
    return found
