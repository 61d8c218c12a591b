"""The waiting lines: for each blocked key, the entries that hold it or wait for it, in order.

The lines of a lane are one sorted set, `:blocked`. Its members are "key NUL order NUL id", all with
score 0, so that a range of members is the line of a key. The first entry in a line holds the key. A
dead letter that holds its keys is in their lines without being in `:parked`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from processor.buffer.entry_ids import from_sortable, sortable
from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.transaction.entry import Entry

_NUL = b"\0"
_MEMBER = re.compile(
    rb"(.*)\0([0-9]{16}-[0-9]{20})\0([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.S
).fullmatch


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a transaction in the line of a key; `order` is as made by `sortable`."""

    key: str
    order: bytes
    id: str

    @property
    def entry_id(self) -> str:
        """The id of the entry that has this place."""
        return from_sortable(self.order)


def member(key: str, entry_id: str, transaction_id: str) -> bytes:
    """Return the member of `:blocked` for a transaction in the line of a key."""
    return _NUL.join((key.encode(), sortable(entry_id), transaction_id.encode()))


def parse_place(found: bytes) -> Place | None:
    """Return the place that a member of `:blocked` stands for, None if another program wrote it."""
    parts = _MEMBER(found)
    if parts is None:
        return None
    return Place(parts[1].decode(errors="replace"), parts[2], parts[3].decode())


def parse_places(members: Iterable[bytes]) -> list[Place]:
    """Return the places that members of `:blocked` stand for, without those of other programs."""
    return [place for place in map(parse_place, members) if place is not None]


def join(lane: Lane, entry: Entry) -> list[Command]:
    """Add an entry to the lines of its keys."""
    if not entry.keys:
        return []
    members = [member(key, entry.entry_id, entry.id) for key in entry.keys]
    return [("ZADD", lane.blocked, *(part for m in members for part in (0, m)))]


def leave(lane: Lane, entries: Iterable[Entry]) -> Command:
    """Remove entries, which have keys, from the lines of their keys."""
    members = [member(key, entry.entry_id, entry.id) for entry in entries for key in entry.keys]
    return ("ZREM", lane.blocked, *members)


def first_places(redis: RedisConnection, lane: Lane, keys: Iterable[str]) -> dict[str, Place]:
    """Return the first place in the line of each of these keys that has a line.

    For the owner of the lane: see `read_lines`.
    """
    asked = list(dict.fromkeys(keys))
    lines = read_lines(redis, lane, asked, 1)
    return {key: line[0] for key, line in zip(asked, lines, strict=True) if line}


def show_first_places(
    redis: RedisConnection, lane: Lane, keys: Iterable[str]
) -> dict[str, Place]:
    """Return the same as `first_places` without changing anything; for queries."""
    asked = list(dict.fromkeys(keys))
    found: dict[str, Place] = {}
    count = 1
    while asked:
        replies = checked(redis.calls([_read_line(lane, key, count) for key in asked]))
        for key, reply in zip(asked, replies, strict=True):
            if places := parse_places(reply):
                found[key] = places[0]
        # Only members of other programs so far, and more of them: the first place is behind them.
        asked = [key for key, reply in zip(asked, replies, strict=True)
                 if key not in found and len(reply) == count]  # fmt: skip
        count *= 8
    return found


def read_lines(
    redis: RedisConnection, lane: Lane, keys: Sequence[str], count: int
) -> list[list[Place]]:
    """Return the first `count` places in the line of each key, for the owner of the lane.

    Members that other programs wrote are removed, because they would hide the places behind them.
    """
    while keys:
        replies = checked(redis.calls([_read_line(lane, key, count) for key in keys]))
        foreign = [m for reply in replies for m in reply if parse_place(m) is None]
        if not foreign:
            return [parse_places(reply) for reply in replies]
        redis.call("ZREM", lane.blocked, *foreign)
    return []


def _read_line(lane: Lane, key: str, count: int) -> Command:
    start, end = b"[" + key.encode() + _NUL, b"(" + key.encode() + b"\1"
    return ("ZRANGEBYLEX", lane.blocked, start, end, "LIMIT", 0, count)


def holders(
    redis: RedisConnection, lane: Lane, after: bytes, count: int
) -> tuple[list[Place], bytes]:
    """Return the first place of each line among the next `count` members of `:blocked`.

    `after` is b"" to begin, then the second value of the last call, which is b"" at the end.
    """
    members = redis.call("ZRANGEBYLEX", lane.blocked, after or "-", "+", "LIMIT", 0, count)
    foreign = [m for m in members if parse_place(m) is None]
    if foreign:
        redis.call("ZREM", lane.blocked, *foreign)
    first: dict[str, Place] = {}
    for place in parse_places(members):
        first.setdefault(place.key, place)
    if len(members) < count:
        return list(first.values()), b""
    last = parse_place(members[-1])
    # The rest of a long line is skipped.
    return list(first.values()), b"[" + last.key.encode() + b"\1" if last else b"(" + members[-1]
