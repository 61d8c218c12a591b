"""How far a transaction got: Redis is asked first, then the ledger (P8).

Redis knows what waits and, for a while, what was committed or died; the ledger knows what was
decided. So the answer never runs out while either of them has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from processor import deadletter, ledger, notes, parked
from processor.buffer import Lane
from processor.database import Database
from processor.entry import Unreadable
from processor.notes import Note, Told
from processor.position import Position
from processor.redis_connection import Command, RedisConnection

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """How far a transaction got.

    `state` is accepted, scheduled, retrying, parked, committed, replicated, dead, discarded or
    unknown; `position` and `at` (Unix seconds) tell of the commit, `reason` of the death, `attempt`
    and `next_try` (Unix seconds) of the tries that failed, `replicas` who has replayed the commit.
    """

    state: str
    position: Position | None = None
    at: float | None = None
    reason: str = ""
    attempt: int = 0
    next_try: float | None = None
    replicas: Mapping[str, bool] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether it is committed, dead or discarded."""
        return self.state in ("committed", "replicated", "dead", "discarded")


UNKNOWN = Whereabouts("unknown")


def from_told(told: Told) -> Whereabouts:
    """What a note tells."""
    return Whereabouts(told.state, told.position, told.at, told.reason)


def in_redis(
    redis: RedisConnection, lane: Lane, transaction_id: str, entry_id: str, buffer_id: str
) -> Whereabouts | None:
    """What Redis knows of a transaction; None if it was settled longer ago than the notes reach.

    Raises RedisUnavailable and RedisRefused.
    """
    told = _told(redis, lane, transaction_id, entry_id, buffer_id)
    if told is not None:
        return told
    waiting = _waiting(redis, lane, transaction_id, entry_id)
    # Between the two questions it may have left the stream, with a note put before.
    return waiting or _told(redis, lane, transaction_id, entry_id, buffer_id)


def in_database(database: Database, transaction_id: str) -> Whereabouts | None:
    """What the ledger knows. Raises DatabaseUnavailable and DatabaseError."""
    row = ledger.row(database, transaction_id)
    if row is None:
        return None
    if row.outcome != "dead":
        state = "committed" if row.outcome == "applied" else row.outcome
        return Whereabouts(state, None, row.committed_at.timestamp())
    letters = deadletter.found(database, transaction_id)
    reason = next((letter.reason for letter in letters), "")
    return Whereabouts("dead", None, row.committed_at.timestamp(), reason)


def _waiting(
    redis: RedisConnection, lane: Lane, transaction_id: str, entry_id: str
) -> Whereabouts | None:
    asked: list[Command] = [
        ("HGET", lane.parked, transaction_id),
        ("ZSCORE", lane.retry, transaction_id),
    ]
    if entry_id:
        asked.append(("XRANGE", lane.stream, entry_id, entry_id))
    record, retry, *entry = parked.whole(redis.calls(asked))
    if record is not None:
        return _parked(record, retry)
    return Whereabouts("accepted") if entry and entry[0] else None


def _parked(record: bytes, retry: bytes | None) -> Whereabouts:
    try:
        attempt = parked.record(record).attempt
    except Unreadable:
        attempt = 0
    when = None if retry is None else float(retry)
    return Whereabouts("retrying" if attempt else "parked", attempt=attempt, next_try=when)


def _told(
    redis: RedisConnection, lane: Lane, transaction_id: str, entry_id: str, buffer_id: str
) -> Whereabouts | None:
    """What the notes tell, newest first: a dead letter may have been applied since."""
    end = "+"
    while True:
        page: list[Any] = redis.call("XREVRANGE", lane.commits, end, "-", "COUNT", _PAGE)
        for _, fields in page:
            note = _note(fields)
            told = note and note.buffer == buffer_id and note.tells(transaction_id, entry_id)
            if told:
                return from_told(told)
        if len(page) < _PAGE:
            return None
        end = f"({page[-1][0].decode()}"


def _note(fields: Any) -> Note | None:
    try:
        return notes.read(fields)
    except (KeyError, ValueError):
        return None
