"""Parked entries: to be retried, or waiting behind an earlier entry that shares a key.

A parked entry never re-enters the stream. The owner applies it from here, in accept order, when it
is due (rule 26). A lane has three structures, in the order in which they are written:

`:blocked`  the waiting lines of keys (see `waiting_lines`)
`:retry`    id -> when the entry is due, Unix seconds. A score above HELD is that of the pause of a
            kind, which holds the entry: it is not due
`:parked`   id -> record: entry id, version of the envelope unless it is 1, failed attempts, reason
            of the last failure, body

They are written before the entry is removed from the stream, and may be written twice (rule 28).
They are removed in the order lines, record, retry. What a crash in between leaves, and what an
owner that was frozen writes after another one took over, is found by the owner's regular look at
all records and lines (`page`, and `key_lines` in `ownership`): whatever the ledger has is settled.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.buffer.entry_ids import order
from processor.buffer.lane import Lane
from processor.buffer.waiting_lines import first_places, member, read_lines
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode

#: Scores from here on are no times: each belongs to the pause of one kind (the year is 8307).
HELD = 2e11
#: Held entries are skipped at random up to here, to try another one each time.
_MOST_SKIPPED = 100_000
_RELEASED_AT_ONCE = 500

_RECORD = re.compile(
    rb"([0-9]{1,20}-[0-9]{1,20})(?: v([0-9]{1,9}))?\n([0-9]{1,9})(?: ([^\n]*))?\n"
).match
#: A parked transaction of a later release is looked at again after so many seconds.
_LATER = 60.0


# Records.


def put(lane: Lane, entry: Entry, attempt: int, reason: str = "") -> Command:
    """Write the record of an entry: how many attempts failed, and why the last one did."""
    # The reason contains no values (rule 19), but it contains names, which may contain newlines.
    failed = f"{attempt} {reason}".strip().replace("\n", " ")
    # Release 0.1 knows no version here, and reads what has none.
    version = "" if entry.version == 1 else f" v{entry.version}"
    record = b"\n".join((f"{entry.entry_id}{version}".encode(), failed.encode(), entry.body))
    return ("HSET", lane.parked, entry.id, record)


def put_new(lane: Lane, entry: Entry) -> Command:
    """Write the record of a waiting entry, unless it has one, which may count more attempts."""
    return ("HSETNX", *put(lane, entry, entry.attempt)[1:])


@dataclass(frozen=True, slots=True)
class Head:
    """What a record says before the body, and the body; `reason` is of the last failure."""

    entry_id: str
    version: str
    attempt: int
    reason: str
    body: bytes


def head(record: bytes) -> Head | None:
    """Return a record in its parts, without decoding the body; None if it is not a record."""
    found = _RECORD(record)
    if found is None:
        return None
    return Head(
        found[1].decode(), (found[2] or b"1").decode(), int(found[3]),
        (found[4] or b"").decode(errors="replace"), record[found.end() :],
    )  # fmt: skip


def accepted_at(record: bytes) -> int | None:
    """Return when the entry of a record was accepted, in ms; None if it is not a record."""
    found = _RECORD(record)
    return order(found[1].decode())[0] if found else None


def parse(record: bytes) -> Entry:
    """Return the entry of a record. Raises Unreadable, and UnknownVersion for a later release."""
    found = head(record)
    if found is None:
        raise Unreadable("parked record without entry id and attempts")
    return decode(found.entry_id, found.version.encode(), found.body, found.attempt)


def last_failure(record: bytes) -> str:
    """Return why the entry of a record failed last; "" if it did not, or the record is invalid."""
    found = head(record)
    return found.reason if found else ""


def payload_hashes(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> dict[str, str]:
    """Return the payload hashes of those of these transactions that have a record."""
    return {i: entry.hash for i, entry in recorded(redis, lane, ids).items()}


def entry_ids(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> set[str]:
    """Return the entry ids of those of these transactions that have a record."""
    return {entry.entry_id for entry in recorded(redis, lane, ids).values()}


def having_record(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> set[str]:
    """Return those of these transactions that have a record."""
    found = checked(redis.calls([("HEXISTS", lane.parked, i) for i in ids])) if ids else []
    return {i for i, there in zip(ids, found, strict=True) if there}


def recorded(redis: RedisConnection, lane: Lane, ids: Sequence[str]) -> dict[str, Entry]:
    """Return the entries of those of these transactions that have a record, by transaction id."""
    if not ids:
        return {}
    records = redis.call("HMGET", lane.parked, *ids)
    return _parsed({i: found for i, found in zip(ids, records, strict=True) if found is not None})


def _parsed(records: Mapping[str, bytes]) -> dict[str, Entry]:
    entries = {}
    for i, record in records.items():
        with contextlib.suppress(Unreadable, UnknownVersion):
            # A record under another transaction's id does not belong to it: applying the entry
            # would never remove the record.
            if (entry := parse(record)).id == i:
                entries[i] = entry
    return entries


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some of the records of a lane; `after` is where to continue, 0 at the end.

    `damaged` are the ids under which there is something else than a record of this transaction.
    """

    entries: list[Entry]
    damaged: list[str]
    after: int


def page(redis: RedisConnection, lane: Lane, after: int, count: int) -> RecordPage:
    """Return about `count` records, in no particular order; `after` is 0 to begin."""
    cursor, pairs = redis.call("HSCAN", lane.parked, after, "COUNT", count)
    named = zip(pairs[::2], pairs[1::2], strict=True)
    records = {i.decode(errors="replace"): record for i, record in named}
    entries = _parsed(records)
    damaged = [i for i in records if i not in entries]
    return RecordPage(list(entries.values()), damaged, int(cursor))


# Retries.


def retry_at(lane: Lane, transaction_id: str, when: float) -> Command:
    """Make a transaction due at `when`, Unix seconds."""
    return ("ZADD", lane.retry, repr(when), transaction_id)


def make_due(redis: RedisConnection, lane: Lane, ids: Iterable[str], now: float) -> None:
    """Make these transactions due at `now`, unless they have a due time already.

    A dead letter that is first in a line has no record; it is skipped when it is due.
    """
    commands = [("ZADD", lane.retry, "NX", repr(now), i) for i in dict.fromkeys(ids)]
    if commands:
        checked(redis.calls(commands))


def promote(redis: RedisConnection, lane: Lane, keys: Iterable[str], now: float) -> None:
    """Make the first entry in the line of each of these keys due, unless it is already."""
    make_due(redis, lane, (first.id for first in first_places(redis, lane, keys).values()), now)


def make_free_ones_due(
    redis: RedisConnection, lane: Lane, entries: Sequence[Entry], now: float
) -> None:
    """Make those of these entries due at `now` that wait for no other entry, unless they are."""
    first, _ = _first_in_line(redis, lane, entries)
    make_due(redis, lane, (entry.id for entry in first), now)


def hasten(redis: RedisConnection, lane: Lane, by: float) -> None:
    """Make all retries due `by` seconds earlier, because the clock went back.

    Only the owner changes due times, so what a page moves down stays below the next page.
    """
    for start in itertools.count(0, _RELEASED_AT_ONCE):
        found = redis.call(
            "ZRANGE", lane.retry, start, start + _RELEASED_AT_ONCE - 1, "WITHSCORES"
        )
        due = {i: float(at) for i, at in zip(found[::2], found[1::2], strict=True)}
        earlier = [part for i, at in due.items() if at < HELD for part in (repr(at - by), i)]
        if earlier:
            redis.call("ZADD", lane.retry, "XX", *earlier)
        if len(due) < _RELEASED_AT_ONCE:
            return


def limit_waits(redis: RedisConnection, lane: Lane, latest: float) -> None:
    """Make retries due at `latest` that are due later: the clock went back under another owner."""
    found = redis.call("ZRANGEBYSCORE", lane.retry, f"({latest!r}", f"({HELD!r}",
                       "LIMIT", 0, _RELEASED_AT_ONCE)  # fmt: skip
    if found:
        redis.call("ZADD", lane.retry, "XX", *(p for i in found for p in (repr(latest), i)))


def due_entries(redis: RedisConnection, lane: Lane, now: float, count: int) -> list[Entry]:
    """Return at most `count` parked entries that may be applied now, in accept order.

    These are the entries that are due and first in all their lines, and the entries behind each of
    them that wait for nothing else.
    """
    found = redis.call("ZRANGEBYSCORE", lane.retry, "-inf", repr(now), "LIMIT", 0, count)
    first = _runnable(redis, lane, found, now)
    followers = _followers(redis, lane, first, count - len(first))
    return sorted([*first, *followers], key=lambda e: order(e.entry_id))


def _runnable(
    redis: RedisConnection, lane: Lane, found: Sequence[bytes], now: float
) -> list[Entry]:
    """Return the entries of `:retry` that are first in all their lines; remove the others."""
    if not found:
        return []
    ids = [i.decode(errors="replace") for i in found]
    due = recorded(redis, lane, ids)
    unread = [stored for i, stored in zip(ids, found, strict=True) if i not in due]
    gone = _put_off_later(redis, lane, unread, now)
    first, not_first = _first_in_line(redis, lane, list(due.values()))
    if gone or not_first:
        redis.call("ZREM", lane.retry, *gone, *not_first)
    return first


# Entries whose kind is paused.


def count_held(redis: RedisConnection, lane: Lane, score: float) -> int:
    """Return how many entries the pause with this score holds."""
    return int(redis.call("ZCOUNT", lane.retry, repr(score), repr(score)))


def one_held(
    redis: RedisConnection, lane: Lane, score: float, count: int, now: float
) -> list[Entry]:
    """Return one of the `count` entries that the pause with this score holds, [] if it is gone.

    Another one each time: the first may fail for a reason of its own.
    """
    skipped = random.randrange(min(max(count, 1), _MOST_SKIPPED))
    at = repr(score)
    found = redis.call("ZRANGEBYSCORE", lane.retry, at, at, "LIMIT", skipped, 1)
    return _runnable(redis, lane, found, now)


def release_held(redis: RedisConnection, lane: Lane, staying: Iterable[float], now: float) -> bool:
    """Make entries due that are held with other scores than these; return whether some are left."""
    bounds = [f"({score!r}" for score in sorted(staying)]
    more = False
    for low, high in itertools.pairwise([repr(HELD), *bounds, "+inf"]):
        ids = redis.call(
            "ZRANGEBYSCORE", lane.retry, low, high, "LIMIT", 0, _RELEASED_AT_ONCE
        )
        if ids:
            redis.call("ZADD", lane.retry, "XX", *(part for i in ids for part in (repr(now), i)))
        more = more or len(ids) == _RELEASED_AT_ONCE
    return more


def _put_off_later(
    redis: RedisConnection, lane: Lane, ids: Sequence[bytes], now: float
) -> list[bytes]:
    """Have the transactions of a later release looked at later; return the other ids."""
    records = redis.call("HMGET", lane.parked, *ids) if ids else []
    later = [i for i, record in zip(ids, records, strict=True) if _is_later(record)]
    if later:
        again = repr(now + _LATER)
        redis.call("ZADD", lane.retry, "XX", *(part for i in later for part in (again, i)))
    return [i for i in ids if i not in later]


def _is_later(record: bytes | None) -> bool:
    try:
        return record is not None and parse(record) is None
    except UnknownVersion:
        return True
    except Unreadable:
        return False


def _first_in_line(
    redis: RedisConnection, lane: Lane, entries: Sequence[Entry]
) -> tuple[list[Entry], list[str]]:
    """Return the entries that are first in all their lines, and the ids of the others."""
    asked = [(entry, key) for entry in entries for key in entry.keys]
    lines = read_lines(redis, lane, [key for _, key in asked], 1)
    behind = {
        entry.id
        for (entry, _), line in zip(asked, lines, strict=True)
        if any(first.id != entry.id for first in line)
    }
    return [e for e in entries if e.id not in behind], sorted(behind)


def _followers(
    redis: RedisConnection, lane: Lane, first: Sequence[Entry], room: int
) -> list[Entry]:
    """Return at most `room` entries that wait for nothing but the entries in `first`."""
    taken = {entry.id for entry in first}
    found: list[Entry] = []
    keys = list(dict.fromkeys(key for entry in first for key in entry.keys))
    if room <= 0 or not keys:
        return found
    lines = [
        [place.id for place in line if place.id not in taken]
        for line in read_lines(redis, lane, keys, room // len(keys) + 2)
    ]
    entries = recorded(redis, lane, list(dict.fromkeys(i for ids in lines for i in ids)))
    for key, ids in zip(keys, lines, strict=False):
        for transaction_id in ids:
            entry = entries.get(transaction_id)
            # An entry with a second key may wait in another line, and nothing behind it may pass.
            if entry is None or entry.keys != (key,) or room <= len(found):
                break
            found.append(entry)
    return found


# Removal.


def release(
    redis: RedisConnection, lane: Lane, done: Sequence[tuple[str, str, Sequence[str]]], now: float
) -> None:
    """Remove transactions whose outcome is committed, given as (id, entry id, keys).

    The entries that are first in a line afterwards are made due before the removal.
    """
    leaving = {i for i, _, _ in done}
    asked = list(dict.fromkeys(key for _, _, keys in done for key in keys))
    lines = read_lines(redis, lane, asked, len(done) + 1)
    next_ids = [next((p.id for p in line if p.id not in leaving), "") for line in lines]
    make_due(redis, lane, filter(None, next_ids), now)
    crashpoint.reach("release-due")
    members = [member(key, entry_id, i) for i, entry_id, keys in done for key in keys]
    ids = [i for i, _, _ in done]
    if members:
        redis.call("ZREM", lane.blocked, *members)
    crashpoint.reach("release-lines")
    redis.call("HDEL", lane.parked, *ids)
    crashpoint.reach("release-records")
    redis.call("ZREM", lane.retry, *ids)


def remove_record(lane: Lane, transaction_id: str) -> list[Command]:
    """Remove record and retry of an entry that became a dead letter; it stays in its lines."""
    return [("HDEL", lane.parked, transaction_id), ("ZREM", lane.retry, transaction_id)]
