"""Counts what a later release stored: this release leaves it alone (rule 95).

Every place is read page by page. An older version is no matter: this release reads all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from processor.admin.findings import OK, WARN, Finding
from processor.buffer import commit_notes, delayed, overlay, parked, stream
from processor.buffer.lane import Lane
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.transaction.entry import is_later
from processor.transaction.operations import VERSION

_PAGE = 500


def examine(
    redis: RedisConnection, database: PostgresSession, settings: Settings, lanes: Iterable[str],
    states: int,
) -> Finding:  # fmt: skip
    """Return one finding; `states` is how many processors publish states of a later release."""
    found: Counter[str] = Counter({"state": states})
    for name in lanes:
        lane = Lane(settings.namespace, name)
        found["entry"] += sum(map(is_later, _entries(redis, lane)))
        found["delayed"] += sum(is_later(delayed.split(m)[0]) for m in _delayed(redis, lane))
        heads = (parked.head(record) for record in _fields(redis, lane.parked))
        found["parked"] += sum(is_later(head.version.encode()) for head in heads if head)
        found["commit note"] += sum(map(commit_notes.is_later, _notes(redis, lane)))
    shown = Overlay(settings).prefix
    found["pending write"] = sum(map(overlay.is_later, _fields(redis, shown)))
    found["dead letter"] = database.run(
        f"SELECT pg_catalog.count(*) FROM processor.dead_letter WHERE version > {int(VERSION)}"
    )[0][0]
    counts = ", ".join(f"{kind}: {count}" for kind, count in found.items() if count)
    if not counts:
        return Finding("verify", "releases", OK, "this release reads everything that is stored")
    return Finding("verify", "releases", WARN, f"a later release stored what this one leaves alone:"
                   f" {counts}", "upgrade, or use the commands of that release for it")  # fmt: skip


def _entries(redis: RedisConnection, lane: Lane) -> Iterator[bytes | None]:
    cursor = "-"
    while raws := stream.entries(checked(redis.read([stream.read(lane, cursor, _PAGE)]))[0]):
        cursor = raws[-1][0]
        yield from (raw[1] for raw in raws)


def _delayed(redis: RedisConnection, lane: Lane) -> Iterator[bytes]:
    start = 0
    while page := checked(redis.read([("ZRANGE", lane.scheduled, start, start + _PAGE - 1)]))[0]:
        start += _PAGE
        yield from page


def _notes(redis: RedisConnection, lane: Lane) -> Iterator[Sequence[bytes]]:
    start = "-"
    while page := checked(redis.read([("XRANGE", lane.commits, start, "+", "COUNT", _PAGE)]))[0]:
        start = f"({page[-1][0].decode()}"
        yield from (fields for _, fields in page)


def _fields(redis: RedisConnection, key: str) -> Iterator[bytes]:
    cursor = b"0"
    while True:
        cursor, pairs = redis.call("HSCAN", key, cursor, "COUNT", _PAGE)
        yield from pairs[1::2]
        if cursor == b"0":
            return
