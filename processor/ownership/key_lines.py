"""Make the lines of a lane's blocked keys agree with the dead letters that hold those keys.

Needed after Redis lost the lines, after a crash between the commit that decided a transaction and
its release, and after an owner that was frozen put entries into lines that another owner had left.
The last can happen at any time, so the owner also looks at the lines regularly (rule 26).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile

from processor.buffer import parked, waiting_lines
from processor.buffer.waiting_lines import Place
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.errors import RedisRefused
from processor.ledger import dead_letters, outcomes
from processor.ownership.owned_lane import OwnedLane

log = logging.getLogger("processor.ownership")

_PAGE = 500


def rebuild(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    """Put the dead letters of an owned lane into their lines, and take out what was decided."""
    put_dead_letters(database, redis, lane)
    try:
        after = look(database, redis, lane, b"")
        while after:
            after = look(database, redis, lane, after)
    except RedisRefused as refused:
        # The owner's regular look takes out what is left.
        if refused.code != "OOM":
            raise


def put_dead_letters(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    """Put the dead letters of an owned lane into the lines of the keys that they hold.

    While a full Redis refuses them, the ledger is asked which keys they hold (rule 20).
    """
    try:
        _put_dead_letters(database, redis, lane)
        lane.parking.lacks_dead_letters = False
        lane.parking.hold_line()
    except RedisRefused as refused:
        if refused.code != "OOM":
            raise
        if not lane.parking.lacks_dead_letters:
            log.warning("lane %s: Redis is full and does not take the keys that dead letters hold:"
                        " they are looked up in PostgreSQL meanwhile", lane.name)  # fmt: skip
        lane.parking.lacks_dead_letters = True


def _put_dead_letters(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    assert lane.owner is not None
    after = None
    while letters := dead_letters.open_holds(database, lane.owner, after, _PAGE):
        after = letters[-1]
        members = [waiting_lines.member(k, x.entry_id, x.id) for x in letters for k in x.keys]
        if members:
            redis.call("ZADD", lane.lane.blocked, *(p for m in members for p in (0, m)))


def look(
    database: PostgresSession, redis: RedisConnection, lane: OwnedLane, after: bytes
) -> bytes:
    """Look at the first places of some lines: take out what is decided, make the others due.

    `after` is b"" to begin, then what the last call returned, which is b"" at the end.
    """
    heads, after = waiting_lines.holders(redis, lane.lane, after, _PAGE)
    gone = _gone(database, redis, lane, heads)
    staying = parked.having_record(redis, lane.lane, [h.id for h in heads])
    parked.make_due(redis, lane.lane, staying, 0.0)
    if gone:
        # What is behind a place that is taken out may have to go as well.
        keys = sorted({place.key for place in gone})
        for line in waiting_lines.read_lines(redis, lane.lane, keys, _PAGE):
            out = set(_gone(database, redis, lane, line))
            leading = list(takewhile(out.__contains__, line))
            leaving = [(place.id, place.entry_id, [place.key]) for place in leading]
            if leaving:
                parked.release(redis, lane.lane, leaving, 0.0)
        lane.parking.retry_soon()
    return after


def _gone(
    database: PostgresSession, redis: RedisConnection, lane: OwnedLane, places: Sequence[Place]
) -> list[Place]:
    """Those places whose transaction is decided, and no dead letter, or is nowhere.

    A failover may have lost the dead letter that held the key.
    """
    bodies = parked.having_record(redis, lane.lane, [place.id for place in places])
    bare = [place for place in places if place.id not in bodies]
    known = outcomes.find(database, [place.id for place in bare])
    unknown = [place for place in bare if place.id not in known]
    asked = [("XRANGE", lane.lane.stream, place.entry_id, place.entry_id) for place in unknown]
    found = checked(redis.read(asked)) if asked else []
    gone = {place for place, entry in zip(unknown, found, strict=True) if not entry}
    gone |= {place for place in bare if place.id in known and known[place.id].outcome != "dead"}
    return [place for place in places if place in gone]
