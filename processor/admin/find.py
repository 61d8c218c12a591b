"""Finds one transaction in Redis: in a stream, delayed or parked.

A stream has no index by transaction. Ids carry the time at which they were made, so the search
begins there, and reads the rest of the lane only if it must.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from processor.buffer import delayed, parked, stream, waiting_lines
from processor.buffer.lane import Lane
from processor.buffer.waiting_lines import Place
from processor.connections.redis_client import RedisConnection, checked

_PAGE = 100
_SCANNED = 1000
#: Milliseconds. Clocks differ: a transaction may enter Redis a little before the time in its id.
_EARLIER = 60_000


@dataclass(frozen=True, slots=True)
class Found:
    """A transaction in Redis; times are in Unix seconds.

    `where` is stream, scheduled or parked. `heads` has the first place in the line of each of its
    keys that is blocked. `attempt` and `reason` are of its last failure.
    """

    where: str
    lane: str
    entry_id: str = ""
    version: str = "1"
    due: float | None = None
    attempt: int = 0
    reason: str = ""
    retry_at: float | None = None
    keys: tuple[str, ...] = ()
    heads: Mapping[str, Place] = field(default_factory=dict)
    #: Its record is not one of ours.
    damaged: bool = False


class _Header(msgspec.Struct):
    """The fields needed here, which every release writes."""

    id: str = ""
    key: str | None = None
    keys: list[str] | None = None

    def all_keys(self) -> tuple[str, ...]:
        return (self.key,) if self.key is not None else tuple(self.keys or ())


_headers = msgspec.json.Decoder(_Header)


def find(redis: RedisConnection, namespace: str, lanes: list[str], wanted: str) -> Found | None:
    """Find a transaction; None if it is in none of the lanes.

    Looks among the parked ones before the stream, since a move puts first and removes after
    (rule 28). Raises RedisUnavailable and RedisRefused.
    """
    for search in (_parked, _scheduled, _in_stream):
        for name in lanes:
            found = search(redis, Lane(namespace, name), wanted)
            if found is not None:
                return found
    return None


def _parked(redis: RedisConnection, lane: Lane, wanted: str) -> Found | None:
    record = redis.call("HGET", lane.parked, wanted)
    if record is None:
        return None
    retry = redis.call("ZSCORE", lane.retry, wanted)
    head = parked.head(record)
    if head is None:
        return Found("parked", lane.name, damaged=True)
    keys = _header(head.body).all_keys()
    return Found(
        "parked", lane.name, head.entry_id, head.version, attempt=head.attempt, keys=keys,
        reason=parked.last_failure(record), retry_at=None if retry is None else float(retry),
        heads=waiting_lines.show_first_places(redis, lane, keys),
    )


def _scheduled(redis: RedisConnection, lane: Lane, wanted: str) -> Found | None:
    cursor: Any = b"0"
    while True:
        cursor, pairs = redis.call(
            "ZSCAN", lane.scheduled, cursor, "MATCH", f"*{wanted}*", "COUNT", _SCANNED
        )
        for body, due in zip(pairs[::2], pairs[1::2], strict=True):
            version, body = delayed.split(body)
            header = _header(body)
            if header.id == wanted:
                return Found("scheduled", lane.name, version=version.decode(),
                             due=float(due), keys=header.all_keys())
        if cursor == b"0":
            return None


def _in_stream(redis: RedisConnection, lane: Lane, wanted: str) -> Found | None:
    marker = wanted.encode()
    for entry_id, version, body, _ in _likely_first(redis, lane, wanted):
        if body is None or marker not in body:
            continue
        header = _header(body)
        if header.id == wanted:
            keys = header.all_keys()
            return Found(
                "stream", lane.name, entry_id, (version or b"").decode("ascii", "replace"),
                keys=keys, heads=waiting_lines.show_first_places(redis, lane, keys),
            )
    return None


def _likely_first(redis: RedisConnection, lane: Lane, wanted: str) -> Iterator[stream.Raw]:
    if wanted[14] == "7":
        made = max(0, int(wanted[:8] + wanted[9:13], 16) - _EARLIER)
        yield from _entries(redis, lane, str(made), "+")
        yield from _entries(redis, lane, "-", f"({made}")
    else:
        yield from _entries(redis, lane, "-", "+")


def _entries(redis: RedisConnection, lane: Lane, start: str, end: str) -> Iterator[stream.Raw]:
    while True:
        command = ("XRANGE", lane.stream, start, end, "COUNT", _PAGE)
        page = stream.entries(checked(redis.read([command]))[0])
        yield from page
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0]}"


def _header(body: bytes) -> _Header:
    try:
        return _headers.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return _Header()
