"""What Redis and PostgreSQL say of the same transactions, compared; reads only.

It asks with statements of its own: a check that used the statements of what it checks would repeat
their mistakes. Each look yields problems; `verify` looks twice, since work in hand is no problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from processor.buffer import parked, stream
from processor.buffer.entry_ids import last_generated, order
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.connections.sql_literals import quoted
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not agree: of which kind, in which lane, at which transaction."""

    check: str
    lane: str
    id: str


#: The kinds, with what is meant when there are none, and what is to be done if there are some.
CHECKS = {
    "settled": ("nothing in Redis that the ledger knows already",
                "the lane's owner settles it; if one runs and does not, restart it"),
    "lines": ("every parked transaction stands in the lines of its keys and is tried in its turn",
              "Redis lost a part of its keys: see `processor explain` for each"),
    "holders": ("every line begins with a parked transaction or a dead letter that holds it",
                "restart the processor: who takes a lane rebuilds its lines"),
    "holds": ("every dead letter that holds its keys stands in their lines",
              "restart the processor: who takes a lane rebuilds its lines"),
    "outcomes": ("ledger and dead letters tell the same outcome",
                 "somebody wrote into the schema processor by hand: compare the rows"),
    "counters": ("the counters of each lane agree with ledger and dead letters",
                 "somebody wrote into the schema processor by hand: compare the rows"),
    "loss": ("Redis has not gone back behind what was committed",
             "what was accepted after its last save is lost: see appendonly in `processor doctor`"),
}


def look(
    redis: RedisConnection, database: PostgresSession, settings: Settings, identity: str,
    lanes: Sequence[str],
) -> Iterator[Problem]:  # fmt: skip
    """Compare once."""
    for name in lanes:
        lane = Lane(settings.namespace, name)
        if settings.settle == "committed":  # else they wait there until replicas have them
            yield from _unsettled(database, lane, _stream(redis, lane))
        yield from _unsettled(database, lane, _parked(redis, lane))
        yield from _without_lines(redis, lane)
        yield from _without_holders(redis, database, lane)
        yield from _not_held(redis, database, identity, lane)
        yield from _gone_back(redis, database, identity, lane)
    yield from _outcomes(database, identity)
    yield from _counters(database, identity)


def _unsettled(
    database: PostgresSession, lane: Lane, pages: Iterator[list[Entry]]
) -> Iterator[Problem]:
    for page in pages:
        for known in _ids(database, "ledger", "true", [entry.id for entry in page]):
            yield Problem("settled", lane.name, known)


def _without_lines(redis: RedisConnection, lane: Lane) -> Iterator[Problem]:
    for page in _parked(redis, lane):
        commands = [command for entry in page for command in _proofs(lane, entry)]
        proofs = iter(checked(redis.calls(commands)))
        for entry in page:
            found = [next(proofs) is not None for _ in _proofs(lane, entry)]
            if not all(found):
                yield Problem("lines", lane.name, entry.id)


def _proofs(lane: Lane, entry: Entry) -> list[Any]:
    """What shows that a parked transaction has its turn: its lines, or without keys its time."""
    if not entry.keys:
        return [("ZSCORE", lane.retry, entry.id)]
    return [
        ("ZSCORE", lane.blocked, parked.member(key, entry.entry_id, entry.id))
        for key in entry.keys
    ]


def _without_holders(
    redis: RedisConnection, database: PostgresSession, lane: Lane
) -> Iterator[Problem]:
    after = b""
    while True:
        start = b"(" + after if after else b"-"
        members = redis.call("ZRANGEBYLEX", lane.blocked, start, "+", "LIMIT", 0, _PAGE)
        ids = list(dict.fromkeys(each.id for each in parked.places(members)))
        there = parked.has_bodies(redis, lane, ids)
        yield from (Problem("lines", lane.name, each) for each in _untried(redis, lane, there))
        there |= set(_ids(database, "dead_letter", "outcome = 'dead' AND holds", ids))
        yield from (Problem("holders", lane.name, each) for each in ids if each not in there)
        if len(members) < _PAGE:
            return
        after = members[-1]


def _untried(redis: RedisConnection, lane: Lane, ids: set[str]) -> Iterator[str]:
    """Those of these parked transactions that stand first in all their lines and have no turn."""
    asked = sorted(ids)
    scores = redis.calls([("ZSCORE", lane.retry, each) for each in asked]) if asked else []
    for transaction_id, score in zip(asked, checked(scores), strict=True):
        record = None if score is not None else redis.call("HGET", lane.parked, transaction_id)
        if record is not None:
            heads = parked.first_places(redis, lane, parked.record(record).keys)
            if all(head.id == transaction_id for head in heads.values()):
                yield transaction_id


def _not_held(
    redis: RedisConnection, database: PostgresSession, identity: str, lane: Lane
) -> Iterator[Problem]:
    rows = database.run(
        "SELECT id::text, entry, keys FROM processor.dead_letter WHERE outcome = 'dead' AND holds"
        f" AND buffer = {quoted(identity)} AND lane = {quoted(lane.name)}"
    )
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        members = [(i, parked.member(key, entry, i)) for i, entry, keys in page for key in keys]
        commands = [("ZSCORE", lane.blocked, member) for _, member in members]
        scores = checked(redis.calls(commands)) if commands else []
        for (transaction_id, _), score in zip(members, scores, strict=True):
            if score is None:
                yield Problem("holds", lane.name, transaction_id)


def _gone_back(
    redis: RedisConnection, database: PostgresSession, identity: str, lane: Lane
) -> Iterator[Problem]:
    rows = database.run(
        "SELECT last_entry FROM processor.lane WHERE last_entry IS NOT NULL"
        f" AND buffer = {quoted(identity)} AND lane = {quoted(lane.name)}"
    )
    for (last,) in rows:
        generated = last_generated(redis, lane)
        if order(generated) < order(last):
            yield Problem("loss", lane.name, f"{generated} after {last}")


def _outcomes(database: PostgresSession, identity: str) -> Iterator[Problem]:
    rows = database.run(
        "SELECT l.lane, l.id::text FROM processor.ledger l LEFT JOIN processor.dead_letter d"
        f" ON d.id = l.id AND d.outcome = 'dead' WHERE l.buffer = {quoted(identity)}"
        " AND l.outcome = 'dead' AND d.id IS NULL LIMIT 1000"
    )
    yield from (Problem("outcomes", lane, transaction_id) for lane, transaction_id in rows)


def _counters(database: PostgresSession, identity: str) -> Iterator[Problem]:
    """Counted up with each commit; rows may have been pruned since, and none can be too many."""
    rows = database.run(
        "WITH done AS (SELECT lane, count(*) AS n FROM processor.ledger"
        f" WHERE buffer = {quoted(identity)} AND outcome = 'applied' GROUP BY lane),"
        " dead AS (SELECT lane, count(*) AS n FROM processor.dead_letter"
        f" WHERE buffer = {quoted(identity)} GROUP BY lane)"
        " SELECT lane, lane.applied, coalesce(done.n, 0), lane.dead, coalesce(dead.n, 0)"
        " FROM processor.lane LEFT JOIN done USING (lane) LEFT JOIN dead USING (lane)"
        f" WHERE lane.buffer = {quoted(identity)} AND (lane.dead < coalesce(dead.n, 0)"
        " OR lane.applied < coalesce(done.n, 0)"
        " OR (lane.pruned_to IS NULL AND lane.applied > coalesce(done.n, 0)))"
    )
    for lane, counted, applied, deaths, letters in rows:
        text = f"counted {counted} applied, {deaths} dead; there are {applied} and {letters}"
        yield Problem("counters", lane, text)


def _ids(database: PostgresSession, table: str, condition: str, ids: Sequence[str]) -> list[str]:
    if not ids:
        return []
    rows = database.run(
        f"SELECT id::text FROM processor.{table} WHERE {condition}"
        f" AND id = ANY ('{{{','.join(ids)}}}'::uuid[])"
    )
    return [row[0] for row in rows]


def _stream(redis: RedisConnection, lane: Lane) -> Iterator[list[Entry]]:
    cursor = "-"
    while raws := stream.entries(redis.call(*stream.read(lane, cursor, _PAGE))):
        cursor = raws[-1][0]
        yield [entry for raw in raws if (entry := _decoded(raw)) is not None]


def _decoded(raw: stream.Raw) -> Entry | None:
    try:
        return decode(raw[0], raw[1], raw[2])
    except (Unreadable, UnknownVersion):
        return None  # the owner's to bury, or a later release's to apply


def _parked(redis: RedisConnection, lane: Lane) -> Iterator[list[Entry]]:
    cursor: Any = b"0"
    while True:
        cursor, pairs = redis.call("HSCAN", lane.parked, cursor, "COUNT", _PAGE)
        entries = [parked.record(value) for value in pairs[1::2]]
        if entries:
            yield entries
        if cursor == b"0":
            return
