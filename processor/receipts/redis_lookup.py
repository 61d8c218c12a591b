"""What Redis knows of a transaction: where it waits and, for a while, how it ended (P8).

The ledger knows what was decided. `tracker` puts the two together, so that there is an answer as
long as either has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from processor.buffer import commit_notes, entry_ids, parked
from processor.buffer.commit_notes import Note, NotedOutcome
from processor.buffer.lane import Lane
from processor.config.settings import Replicas
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.receipts import replica_progress
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import StatusLookup, Target

_PAGE = 100


@dataclass(frozen=True, slots=True)
class RedisAnswer:
    """What Redis knows of a transaction.

    `noted` is what its newest commit note says, `waiting` where it waits. All notes up to the id
    `newest` have been read.
    """

    noted: StatusLookup | None
    waiting: StatusLookup | None
    progress: ReplicaProgress
    newest: str


def from_note(noted: NotedOutcome) -> StatusLookup:
    """Return what a commit note says of a transaction as a status."""
    return StatusLookup(noted.state, noted.position, noted.at, noted.reason)


def look_up(
    redis: RedisConnection, target: Target, replicas: Replicas, since: str = "-"
) -> RedisAnswer:
    """Ask Redis in one round trip; notes up to the id `since` have been read before.

    Raises RedisUnavailable and RedisRefused.
    """
    lane, entry_id = target.lane, target.entry_id
    # A move adds before it removes, and moves follow this order: the entry is found somewhere.
    asked: list[Command] = [
        ("XRANGE", lane.stream, entry_id or "0-0", entry_id or "0-0"),
        ("HGET", lane.parked, target.id),
        ("ZSCORE", lane.retry, target.id),
        _notes_before(lane, "+", _start(entry_id, since)),
        *replica_progress.ask(lane.namespace, [lane]),
    ]
    entry, record, retry, page, *replies = checked(redis.calls(asked))
    noted = _noted(redis, target, page, since)
    (progress,) = replica_progress.parse(replicas, replies)
    newest = page[0][0].decode() if page else since
    return RedisAnswer(noted, _waiting(entry, record, retry), progress, newest)


def last_note(redis: RedisConnection, lane: Lane) -> str:
    """Return the id of the newest note of a lane. Raises RedisUnavailable and RedisRefused."""
    found = redis.call("XREVRANGE", lane.commits, "+", "-", "COUNT", 1)
    return str(found[0][0].decode()) if found else "0-0"


def outlives_notes(redis: RedisConnection, target: Target) -> bool:
    """Whether notes that were written since the entry was accepted may be gone."""
    oldest = redis.call("XRANGE", target.lane.commits, "-", "+", "COUNT", 1)
    return not oldest or entry_ids.order(oldest[0][0].decode()) > entry_ids.order(target.entry_id)


def _waiting(entry: Any, record: bytes | None, retry: bytes | None) -> StatusLookup | None:
    if record is None:
        return StatusLookup("accepted") if entry else None
    head = parked.head(record)
    attempt = head.attempt if head else 0
    next_try = None if retry is None else float(retry)
    return StatusLookup("retrying" if attempt else "parked", attempt=attempt, next_try=next_try)


def _start(entry_id: str, since: str) -> str:
    """Where the first search ends: by the clock of Redis no note of an entry is older than it."""
    return entry_id if since == "-" and entry_id else since


def _notes_before(lane: Lane, end: str, start: str) -> Command:
    return ("XREVRANGE", lane.commits, end, start, "COUNT", _PAGE)


def _noted(
    redis: RedisConnection, target: Target, page: list[Any], since: str
) -> StatusLookup | None:
    """Read the notes, newest first: a dead letter may have been applied since it was noted."""
    for _, fields in _pages(redis, target.lane, page, _start(target.entry_id, since)):
        note = _note(fields)
        outcome = note and note.buffer == target.buffer and note.outcome_of(
            target.id, target.entry_id
        )  # fmt: skip
        if outcome:
            return from_note(outcome)
    return None


def _pages(redis: RedisConnection, lane: Lane, page: Sequence[Any], start: str) -> Iterator[Any]:
    while True:
        yield from page
        if len(page) < _PAGE:
            return
        before = f"({page[-1][0].decode()}"
        page = checked(redis.calls([_notes_before(lane, before, start)]))[0]


def _note(fields: Any) -> Note | None:
    try:
        return commit_notes.parse(fields)
    except (KeyError, ValueError):
        return None
