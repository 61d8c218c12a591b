"""How far a transaction got: what Redis tells, and what a ledger tells (P8).

Redis knows what waits and, for a while, what was committed or died; the ledger knows what was
decided. `answers` puts the two together, so that an answer never runs out while either has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from processor.buffer import commit_notes, parked
from processor.buffer.commit_notes import Note, Told
from processor.buffer.entry_ids import order
from processor.buffer.lane import Lane
from processor.config.settings import Replicas
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.connections.wal_position import Position
from processor.ledger import dead_letters, outcomes
from processor.receipts import replica_progress
from processor.receipts.replica_progress import ReplicaProgress
from processor.transaction.entry import Unreadable

_PAGE = 100
_DECIDED = ("committed", "replicated", "dead", "discarded", "lost")


@dataclass(frozen=True, slots=True)
class StatusLookup:
    """How far a transaction got.

    `state` is accepted, scheduled, retrying, parked, committed, replicated, dead, discarded, lost
    (by a failover) or unknown; `position` and `at` (Unix seconds) tell of the commit, `reason` of
    death or loss, `attempt` and `next_try` (Unix seconds) of the tries that failed, `replicas` who
    has replayed the commit, the nearest first.

    Replicated is what all replicas have that count and are not lost. The position of what is told
    by the ledger alone is an upper bound.
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
        """Whether it is committed, dead, discarded or lost."""
        return self.state in _DECIDED


UNKNOWN = StatusLookup("unknown")


@dataclass(frozen=True, slots=True)
class Sought:
    """The transaction that is asked for; `entry_id` is empty for one that was delayed."""

    id: str
    lane: Lane
    entry_id: str
    buffer: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis tells of a transaction: by its newest note, by where it waits, of the replicas.

    All notes up to `newest` were looked at.
    """

    told: StatusLookup | None
    waiting: StatusLookup | None
    confirmation: ReplicaProgress
    newest: str


def from_told(told: Told) -> StatusLookup:
    """What a note tells."""
    return StatusLookup(told.state, told.position, told.at, told.reason)


def on_replicas(
    reached: StatusLookup, having: Mapping[str, bool], awaited: Sequence[str]
) -> StatusLookup:
    """A commit with what is known of the replicas; nothing is replicated that nobody awaits."""
    everywhere = bool(awaited) and all(having[name] for name in awaited)
    return replace(reached, state="replicated" if everywhere else "committed", replicas=having)


def in_redis(
    redis: RedisConnection, sought: Sought, replicas: Replicas, since: str = "-"
) -> Seen:
    """What Redis tells; `since` is the note up to which they were looked at before.

    Raises RedisUnavailable and RedisRefused.
    """
    lane, entry_id = sought.lane, sought.entry_id
    # Whoever puts it elsewhere puts first and removes after, in this order: it is found somewhere.
    asked: list[Command] = [
        ("XRANGE", lane.stream, entry_id or "0-0", entry_id or "0-0"),
        ("HGET", lane.parked, sought.id),
        ("ZSCORE", lane.retry, sought.id),
        _newest(lane, "+", _least(entry_id, since)),
        *replica_progress.ask(lane.namespace, [lane]),
    ]
    entry, record, retry, page, *replies = checked(redis.calls(asked))
    told = _told(redis, sought, page, since)
    (found,) = replica_progress.told(replicas, replies)
    newest = page[0][0].decode() if page else since
    return Seen(told, _waiting(entry, record, retry), found, newest)


def last_note(redis: RedisConnection, lane: Lane) -> str:
    """The id of the newest note of a lane. Raises RedisUnavailable and RedisRefused."""
    found = redis.call("XREVRANGE", lane.commits, "+", "-", "COUNT", 1)
    return str(found[0][0].decode()) if found else "0-0"


def outlives_notes(redis: RedisConnection, sought: Sought) -> bool:
    """Whether notes that were left since an entry was accepted may be gone."""
    oldest = redis.call("XRANGE", sought.lane.commits, "-", "+", "COUNT", 1)
    return not oldest or order(oldest[0][0].decode()) > order(sought.entry_id)


def in_ledger(database: PostgresSession, transaction_id: str) -> StatusLookup | None:
    """What a ledger knows. Raises DatabaseUnavailable and DatabaseError."""
    row = outcomes.row(database, transaction_id)
    if row is None:
        return None
    if row.outcome != "dead":
        state = "committed" if row.outcome == "applied" else row.outcome
        return StatusLookup(state, None, row.committed_at.timestamp())
    letters = dead_letters.found(database, transaction_id)
    reason = next((letter.reason for letter in letters), "")
    return StatusLookup("dead", None, row.committed_at.timestamp(), reason)


def _waiting(entry: Any, record: bytes | None, retry: bytes | None) -> StatusLookup | None:
    if record is None:
        return StatusLookup("accepted") if entry else None
    try:
        attempt = parked.record(record).attempt
    except Unreadable:
        attempt = 0
    when = None if retry is None else float(retry)
    return StatusLookup("retrying" if attempt else "parked", attempt=attempt, next_try=when)


def _least(entry_id: str, since: str) -> str:
    """Where to end the first search: by Redis's clock no note of an entry is older than it."""
    return entry_id if since == "-" and entry_id else since


def _newest(lane: Lane, end: str, start: str) -> Command:
    return ("XREVRANGE", lane.commits, end, start, "COUNT", _PAGE)


def _told(
    redis: RedisConnection, sought: Sought, page: list[Any], since: str
) -> StatusLookup | None:
    """What the notes tell, newest first: a dead letter may have been applied since."""
    for _, fields in _pages(redis, sought.lane, page, _least(sought.entry_id, since)):
        note = _note(fields)
        told = note and note.buffer == sought.buffer and note.tells(sought.id, sought.entry_id)
        if told:
            return from_told(told)
    return None


def _pages(redis: RedisConnection, lane: Lane, page: list[Any], start: str) -> Iterator[Any]:
    while True:
        yield from page
        if len(page) < _PAGE:
            return
        page = checked(redis.calls([_newest(lane, f"({page[-1][0].decode()}", start)]))[0]


def _note(fields: Any) -> Note | None:
    try:
        return commit_notes.read(fields)
    except (KeyError, ValueError):
        return None
