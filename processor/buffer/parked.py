"""Entries held back: to be retried, or waiting behind an earlier one that shares a key.

Such an entry never re-enters the stream; the owner applies it from here, in accept order, when due
(rule 26). Three structures of a lane, in the order in which they are put:

`:blocked`  one sorted set of members "key NUL order NUL id", score 0: the line of each key,
            readable as a range; whoever stands first holds the key. A dead letter that holds
            its keys stands here without a body.
`:retry`    id -> when it is to be tried, Unix seconds.
`:parked`   id -> record (entry id, attempt and why it failed last, body).

Puts come before the removal from the stream and may be done twice (rule 28); removal goes lines,
body, retry last, so that a crash in between leaves something that finds its way again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from processor.buffer.entry_ids import from_sortable, order, sortable
from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.transaction.entry import VERSION, Entry, Unreadable, decode

_NUL = b"\0"
_MEMBER = re.compile(
    rb"(.*)\0([0-9]{16}-[0-9]{20})\0([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.S
).fullmatch
_RECORD = re.compile(rb"([0-9]{1,20}-[0-9]{1,20})\n([0-9]{1,9})(?: ([^\n]*))?\n").match


@dataclass(frozen=True, slots=True)
class Place:
    """One member of a key's line."""

    key: str
    order: bytes
    id: str

    @property
    def entry_id(self) -> str:
        """The entry id from which the order was made."""
        return from_sortable(self.order)


def member(key: str, entry_id: str, transaction_id: str) -> bytes:
    """A transaction's place in the line of a key."""
    return _NUL.join((key.encode(), sortable(entry_id), transaction_id.encode()))


def place(found: bytes) -> Place | None:
    """A member of `:blocked`, taken apart; None if it was put there by somebody else."""
    parts = _MEMBER(found)
    if parts is None:
        return None
    return Place(parts[1].decode(errors="replace"), parts[2], parts[3].decode())


def places(members: Iterable[bytes]) -> list[Place]:
    """The members of `:blocked` that are places in line."""
    return [found for found in map(place, members) if found is not None]


def line(lane: Lane, key: str, count: int) -> Command:
    """Ask for the first places in the line of a key."""
    start, end = b"[" + key.encode() + _NUL, b"(" + key.encode() + b"\1"
    return ("ZRANGEBYLEX", lane.blocked, start, end, "LIMIT", 0, count)


def first_places(redis: RedisConnection, lane: Lane, keys: Iterable[str]) -> dict[str, Place]:
    """Who stands first in the lines of these keys, for those that have one."""
    asked = list(dict.fromkeys(keys))
    found = _lines(redis, lane, asked, 1)
    return {key: first[0] for key, first in zip(asked, found, strict=True) if first}


def _lines(
    redis: RedisConnection, lane: Lane, keys: Sequence[str], count: int
) -> list[list[Place]]:
    """The first places in the lines of these keys; what is no place is taken out of the way."""
    while keys:
        replies = checked(redis.calls([line(lane, key, count) for key in keys]))
        strange = [m for reply in replies for m in reply if place(m) is None]
        if not strange:
            return [places(reply) for reply in replies]
        redis.call("ZREM", lane.blocked, *strange)
    return []


def lines(lane: Lane, entry: Entry) -> list[Command]:
    """Put an entry into the lines of its keys."""
    if not entry.keys:
        return []
    members = [member(key, entry.entry_id, entry.id) for key in entry.keys]
    return [("ZADD", lane.blocked, *(part for m in members for part in (0, m)))]


def out_of_line(lane: Lane, entries: Iterable[Entry]) -> Command:
    """Take entries with keys out of their lines."""
    members = [member(key, entry.entry_id, entry.id) for entry in entries for key in entry.keys]
    return ("ZREM", lane.blocked, *members)


def body(lane: Lane, entry: Entry, attempt: int, why: str = "") -> Command:
    """Put or renew the record of an entry: how many attempts failed, and why the last one did."""
    # No values are in `why` (rule 19), but names are, and a name may hold the end of a line.
    failed = f"{attempt} {why}".strip().replace("\n", " ")
    record = b"\n".join((entry.entry_id.encode(), failed.encode(), entry.body))
    return ("HSET", lane.parked, entry.id, record)


def first_body(lane: Lane, entry: Entry) -> Command:
    """Put the record of a waiting entry, unless it has one that knows its attempts."""
    return ("HSETNX", *body(lane, entry, entry.attempt)[1:])


def retry_at(lane: Lane, transaction_id: str, when: float) -> Command:
    """Have a transaction tried at `when`, Unix seconds."""
    return ("ZADD", lane.retry, repr(when), transaction_id)


def record(found: bytes) -> Entry:
    """The entry of a parked record. Raises Unreadable."""
    head = _RECORD(found)
    if head is None:
        raise Unreadable("a parked record without entry id and attempt")
    return decode(head[1].decode(), VERSION, found[head.end() :], int(head[2]))


def why(found: bytes) -> str:
    """Why the entry of a parked record failed last; empty if it did not, or nobody wrote it."""
    head = _RECORD(found)
    return (head[3] or b"").decode(errors="replace") if head else ""


def due_entries(redis: RedisConnection, lane: Lane, now: float, count: int) -> list[Entry]:
    """Parked entries that may be applied now, in accept order, at most `count`.

    Those whose retry is due and that stand first in all their lines, each followed by the run of
    those behind it that wait for nothing else.
    """
    found = redis.call("ZRANGEBYSCORE", lane.retry, "-inf", repr(now), "LIMIT", 0, count)
    if not found:
        return []
    ids = [i.decode(errors="replace") for i in found]
    heads = _bodies(redis, lane, ids)
    gone = [stored for i, stored in zip(ids, found, strict=True) if i not in heads]
    ready, passed = _standing_first(redis, lane, list(heads.values()))
    if gone or passed:
        redis.call("ZREM", lane.retry, *gone, *passed)
    followers = _followers(redis, lane, ready, count - len(ready))
    return sorted([*ready, *followers], key=lambda e: order(e.entry_id))


def release(
    redis: RedisConnection, lane: Lane, done: Sequence[tuple[str, str, Sequence[str]]], now: float
) -> None:
    """Let go of transactions that are decided, given as (id, entry id, keys).

    Whoever then stands first in a line is put up for its turn before the leaver is removed.
    """
    leaving = {i for i, _, _ in done}
    asked = list(dict.fromkeys(key for _, _, keys in done for key in keys))
    lines = _lines(redis, lane, asked, len(done) + 1)
    heirs = [next((p.id for p in waiting if p.id not in leaving), "") for waiting in lines]
    have_turn(redis, lane, filter(None, heirs), now)
    members = [member(key, entry_id, i) for i, entry_id, keys in done for key in keys]
    ids = [i for i, _, _ in done]
    if members:
        redis.call("ZREM", lane.blocked, *members)
    redis.call("HDEL", lane.parked, *ids)
    redis.call("ZREM", lane.retry, *ids)


def promote(redis: RedisConnection, lane: Lane, keys: Iterable[str], now: float) -> None:
    """See that whoever stands first in these lines has its turn some time."""
    have_turn(redis, lane, (found.id for found in first_places(redis, lane, keys).values()), now)


def have_turn(redis: RedisConnection, lane: Lane, ids: Iterable[str], now: float) -> None:
    """Have these tried at `now`, unless they wait for a time of their own already.

    A dead letter that stands first has no body to be tried, and is left out when its turn comes.
    """
    commands = [("ZADD", lane.retry, "NX", repr(now), i) for i in dict.fromkeys(ids)]
    if commands:
        checked(redis.calls(commands))


def forget_body(lane: Lane, transaction_id: str) -> list[Command]:
    """Take away record and retry of an entry that became a dead letter; its lines stay."""
    return [("HDEL", lane.parked, transaction_id), ("ZREM", lane.retry, transaction_id)]


def holders(
    redis: RedisConnection, lane: Lane, after: bytes, count: int
) -> tuple[list[Place], bytes]:
    """Who stands first in the lines, looking at `count` members from `after` on (b"" to begin).

    The second answer is where to go on, b"" at the end.
    """
    members = redis.call("ZRANGEBYLEX", lane.blocked, after or "-", "+", "LIMIT", 0, count)
    strange = [m for m in members if place(m) is None]
    if strange:
        redis.call("ZREM", lane.blocked, *strange)
    heads: dict[str, Place] = {}
    for found in places(members):
        heads.setdefault(found.key, found)
    if len(members) < count:
        return list(heads.values()), b""
    last = place(members[-1])
    # The rest of a long line is passed over.
    return list(heads.values()), b"[" + last.key.encode() + b"\1" if last else b"(" + members[-1]


def hashes(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> dict[str, str]:
    """The payload hashes of those of these transactions that are parked with their body."""
    return {i: entry.hash for i, entry in _bodies(redis, lane, ids).items()}


def entry_ids(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> set[str]:
    """Under which entry ids those of these transactions lie that are parked with their body."""
    return {entry.entry_id for entry in _bodies(redis, lane, ids).values()}


def has_bodies(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> set[str]:
    """Which of these transactions are parked with their body."""
    if not ids:
        return set()
    found = redis.call("HMGET", lane.parked, *ids)
    return {i for i, stored in zip(ids, found, strict=True) if stored is not None}


def _bodies(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> dict[str, Entry]:
    if not ids:
        return {}
    found = redis.call("HMGET", lane.parked, *ids)
    bodies = {}
    for i, stored in zip(ids, found, strict=True):
        with contextlib.suppress(Unreadable):
            # A record under another's id is not that one's, and would never be released.
            if stored is not None and (entry := record(stored)).id == i:
                bodies[i] = entry
    return bodies


def _standing_first(
    redis: RedisConnection, lane: Lane, heads: Sequence[Entry]
) -> tuple[list[Entry], list[str]]:
    asked = [(entry, key) for entry in heads for key in entry.keys]
    found = _lines(redis, lane, [key for _, key in asked], 1)
    behind = {
        entry.id
        for (entry, _), waiting in zip(asked, found, strict=True)
        if any(first.id != entry.id for first in waiting)
    }
    return [e for e in heads if e.id not in behind], sorted(behind)


def _followers(
    redis: RedisConnection, lane: Lane, heads: Sequence[Entry], room: int
) -> list[Entry]:
    taken = {entry.id for entry in heads}
    found: list[Entry] = []
    keys = list(dict.fromkeys(key for entry in heads for key in entry.keys))
    if room <= 0 or not keys:
        return found
    lines = [
        [p.id for p in waiting if p.id not in taken]
        for waiting in _lines(redis, lane, keys, room // len(keys) + 2)
    ]
    bodies = _bodies(redis, lane, list(dict.fromkeys(i for ids in lines for i in ids)))
    for key, ids in zip(keys, lines, strict=False):
        for transaction_id in ids:
            entry = bodies.get(transaction_id)
            # One with a second key may wait elsewhere, and behind it nobody may pass either.
            if entry is None or entry.keys != (key,) or room <= len(found):
                break
            found.append(entry)
    return found
