"""Compares what Redis and PostgreSQL say of the same transactions; reads only.

It sends queries of its own: a check that shared the queries of the code it checks would repeat
their mistakes. It may run beside a working processor, so it compares twice: a problem that only one
comparison finds is work in progress.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from processor.admin import later_releases, overview
from processor.admin.findings import FAIL, OK, WARN, Finding
from processor.admin.sessions import OperatorSessions
from processor.buffer import observation, parked, registry, stream, waiting_lines
from processor.buffer.entry_ids import last_generated, order
from processor.buffer.lane import Lane
from processor.buffer.observation import BufferObservation
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.connections.sql_literals import quoted
from processor.ledger import stored_text, stream_losses
from processor.ledger.stream_losses import LaneLoss
from processor.transaction.entry import Entry, UnknownVersion, Unreadable, decode
from processor.transaction.ids import canonical_id

_PAGE = 500
#: Seconds between the two comparisons.
_BETWEEN = 2.0
#: How many problems of a kind are named.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """A disagreement: which check found it, in which lane, at which transaction."""

    check: str
    lane: str
    id: str


#: The checks, with what is true when one finds nothing and what to do when it finds something.
CHECKS = {
    "settled": ("Redis holds no transaction that the ledger records as done",
                "the owner of the lane removes it; if a processor runs and does not, restart it"),
    "records": ("every parked record can be read",
                "another program changed it: `processor explain` shows it; save the record, remove"
                " it from the hash `:parked` of its lane, and submit the transaction again"),
    "lines": ("every parked transaction waits in the line of each of its keys, and has its turn",
              "Redis lost a part of its keys: run `processor explain` for each transaction"),
    "holders": ("every line begins with a parked transaction or a dead letter that holds the key",
                "restart the processor: it rebuilds the lines of each lane that it acquires"),
    "holds": ("every dead letter that holds its keys stands in their lines",
              "restart the processor: it rebuilds the lines of each lane that it acquires"),
    "outcomes": ("the ledger and the dead letters record the same outcomes",
                 "the schema processor was changed by hand: compare the rows"),
    "counters": ("the counters of each lane match the ledger and the dead letters",
                 "the schema processor was changed by hand: compare the rows"),
    "loss": ("Redis has lost no entries, and has not gone back to before the last commit",
             "entries in the range that were not committed are lost: submit them again, see"
             " persistence and eviction in `processor doctor`, then use --acknowledge-losses"),
}


def verify(sessions: OperatorSessions) -> list[Finding]:
    """One finding per check, and one about later releases.

    Takes about two seconds if the first comparison finds a problem.
    Raises Unavailable, RedisRefused and DatabaseError.
    """
    with sessions.redis() as redis, sessions.database() as database:
        seen = observation.observe(redis, sessions.settings)
        states = overview.processors(redis, sessions.settings)
        if seen.identity is None:
            return [_without_identity(database, sessions.settings.site)]
        problems = _lasting(redis, database, sessions.settings, seen)
        later = sum(each["background_processor"]["status"] == overview.LATER for each in states)
        releases = later_releases.examine(redis, database, sessions.settings, seen.lanes, later)
    owned = {name for each in states for name, lane in each["lanes"].items() if lane["owner"]}
    return [*(_finding(check, problems, owned) for check in CHECKS), releases]


def acknowledge_losses(sessions: OperatorSessions) -> list[LaneLoss]:
    """Close the losses of this buffer, and return them. Raises as `verify`."""
    with sessions.redis() as redis, sessions.database() as database:
        identity = registry.written_identity(redis, sessions.settings.namespace)
        return [] if identity is None else stream_losses.acknowledge(
            database, canonical_id("identity of the buffer", identity)
        )  # fmt: skip


def _lasting(
    redis: RedisConnection, database: PostgresSession, settings: Settings, seen: BufferObservation
) -> set[Problem]:
    identity, lanes = canonical_id("identity of the buffer", seen.identity), list(seen.lanes)
    first = set(compare(redis, database, settings, identity, lanes))
    if not first:
        return first
    time.sleep(_BETWEEN)
    return first & set(compare(redis, database, settings, identity, lanes))


def _finding(check: str, problems: set[Problem], owned: set[str]) -> Finding:
    holds, remedy = CHECKS[check]
    found = sorted((p for p in problems if p.check == check), key=lambda p: (p.lane, p.id))
    if not found:
        return Finding("verify", check, OK, holds)
    # A processor that stops between commit and settling leaves these; the next owner settles them.
    idle = check == "settled" and not owned & {problem.lane for problem in found}
    names = ", ".join(f"{each.lane} {each.id}" for each in found[:_NAMED])
    more = ", ..." if len(found) > _NAMED else ""
    text = f"violated by {len(found)}: {names}{more}"
    return Finding("verify", check, WARN if idle else FAIL, text, remedy)


def _without_identity(database: PostgresSession, site: str) -> Finding:
    """An empty Redis is new, or has lost everything."""
    rows = database.run("SELECT site, buffer::text FROM processor.lane ORDER BY seen_at DESC")
    former = next((buffer for name, buffer in rows if name == site), None)
    if former is None:
        return Finding("verify", "buffer", OK, "nothing was ever submitted here")
    return Finding("verify", "buffer", FAIL, f"Redis holds no buffer, but this site had {former}",
                   "Redis lost its data, or redis.url or namespace is wrong")


def compare(
    redis: RedisConnection, database: PostgresSession, settings: Settings, identity: str,
    lanes: Sequence[str],
) -> Iterator[Problem]:  # fmt: skip
    """Compare Redis and PostgreSQL once."""
    for name in lanes:
        lane = Lane(settings.namespace, name)
        if settings.settle == "committed":  # Else entries stay until the replicas have them.
            yield from _unsettled(database, lane, _stream(redis, lane))
        yield from _unsettled(database, lane, _parked(redis, lane))
        yield from _damaged(redis, lane)
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
        for done in _ids(database, "ledger", "true", [entry.id for entry in page]):
            yield Problem("settled", lane.name, done)


def _without_lines(redis: RedisConnection, lane: Lane) -> Iterator[Problem]:
    for page in _parked(redis, lane):
        commands = [command for entry in page for command in _proofs(lane, entry)]
        proofs = iter(checked(redis.calls(commands)))
        for entry in page:
            found = [next(proofs) is not None for _ in _proofs(lane, entry)]
            if not all(found):
                yield Problem("lines", lane.name, entry.id)


def _proofs(lane: Lane, entry: Entry) -> list[Any]:
    """What proves that a parked transaction will be tried: its lines, or without keys its time."""
    if not entry.keys:
        return [("ZSCORE", lane.retry, entry.id)]
    return [
        ("ZSCORE", lane.blocked, waiting_lines.member(key, entry.entry_id, entry.id))
        for key in entry.keys
    ]


def _without_holders(
    redis: RedisConnection, database: PostgresSession, lane: Lane
) -> Iterator[Problem]:
    after = b""
    while True:
        start = b"(" + after if after else b"-"
        members = redis.call("ZRANGEBYLEX", lane.blocked, start, "+", "LIMIT", 0, _PAGE)
        ids = list(dict.fromkeys(each.id for each in waiting_lines.parse_places(members)))
        holding = parked.having_record(redis, lane, ids)
        yield from (Problem("lines", lane.name, each) for each in _untried(redis, lane, holding))
        holding |= set(_ids(database, "dead_letter", "outcome = 'dead' AND holds", ids))
        yield from (Problem("holders", lane.name, each) for each in ids if each not in holding)
        if len(members) < _PAGE:
            return
        after = members[-1]


def _untried(redis: RedisConnection, lane: Lane, ids: set[str]) -> Iterator[str]:
    """The parked transactions that stand first in all their lines and are not due for a try."""
    ordered = sorted(ids)
    scores = redis.calls([("ZSCORE", lane.retry, each) for each in ordered]) if ordered else []
    for transaction_id, score in zip(ordered, checked(scores), strict=True):
        record = None if score is not None else redis.call("HGET", lane.parked, transaction_id)
        entry = None if record is None else _readable(record)
        if entry is not None:
            heads = waiting_lines.show_first_places(redis, lane, entry.keys)
            if all(head.id == transaction_id for head in heads.values()):
                yield transaction_id


def _not_held(
    redis: RedisConnection, database: PostgresSession, identity: str, lane: Lane
) -> Iterator[Problem]:
    rows = database.run(
        "SELECT id::text, entry, keys, texts FROM processor.dead_letter"
        " WHERE outcome = 'dead' AND holds"
        f" AND buffer = {quoted(identity)} AND lane = {quoted(lane.name)}"
    )
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        members = [
            (i, waiting_lines.member(key, entry, i)) for i, entry, keys, texts in page
            for key in stored_text.read(texts).get("keys", keys) or ()
        ]
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
    found = stream_losses.of_lane(database, identity, lane.name)
    if found is not None and found.found_at is not None:
        yield Problem("loss", lane.name, f"{found.loss.first} to {found.loss.last}")
    for (last,) in rows:
        generated = last_generated(redis, lane)
        if order(generated) < order(last):
            yield Problem("loss", lane.name, f"{generated} after {last}")


def _outcomes(database: PostgresSession, identity: str) -> Iterator[Problem]:
    rows = database.run(
        "SELECT l.lane, l.id::text FROM processor.ledger l"
        f" WHERE l.buffer = {quoted(identity)} AND l.outcome = 'dead'"
        # A key that was submitted by two releases has two ids and one dead letter (rule 96).
        " AND NOT EXISTS (SELECT FROM processor.dead_letter d WHERE d.outcome = 'dead'"
        " AND (d.id = l.id OR (d.lane = l.lane AND d.entry = l.entry))) LIMIT 1000"
    )
    yield from (Problem("outcomes", lane, transaction_id) for lane, transaction_id in rows)


def _counters(database: PostgresSession, identity: str) -> Iterator[Problem]:
    """Each commit adds to the counters. They may exceed the rows, which may have been pruned."""
    rows = database.run(
        # The two rows of a key have the same xid and entry (rule 96).
        "WITH done AS (SELECT lane, pg_catalog.count(*) AS n"
        " FROM (SELECT DISTINCT lane, xid, entry FROM processor.ledger"
        f" WHERE buffer = {quoted(identity)} AND outcome = 'applied') AS once GROUP BY lane),"
        " dead AS (SELECT lane, pg_catalog.count(*) AS n FROM processor.dead_letter"
        f" WHERE buffer = {quoted(identity)} GROUP BY lane)"
        " SELECT lane, lane.applied, coalesce(done.n, 0), lane.dead, coalesce(dead.n, 0)"
        " FROM processor.lane LEFT JOIN done USING (lane) LEFT JOIN dead USING (lane)"
        f" WHERE lane.buffer = {quoted(identity)} AND (lane.dead < coalesce(dead.n, 0)"
        " OR lane.applied < coalesce(done.n, 0)"
        " OR (lane.pruned_to IS NULL AND lane.applied > coalesce(done.n, 0)))"
    )
    for lane, counted, applied, deaths, letters in rows:
        text = f"counted {counted} applied, {deaths} dead; found {applied} and {letters}"
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
    while raws := stream.entries(checked(redis.read([stream.read(lane, cursor, _PAGE)]))[0]):
        cursor = raws[-1][0]
        yield [entry for raw in raws if (entry := _decoded(raw)) is not None]


def _decoded(raw: stream.Raw) -> Entry | None:
    try:
        return decode(raw[0], raw[1], raw[2])
    except (Unreadable, UnknownVersion):
        return None  # The owner dead-letters it, or a later release applies it.


def _damaged(redis: RedisConnection, lane: Lane) -> Iterator[Problem]:
    """Parked records that the owner cannot read either, so that it skips them."""
    cursor: Any = b"0"
    while True:
        cursor, pairs = redis.call("HSCAN", lane.parked, cursor, "COUNT", _PAGE)
        for name, record in zip(pairs[::2], pairs[1::2], strict=True):
            try:
                damaged = parked.parse(record).id != name.decode(errors="replace")
            except Unreadable:
                damaged = True
            except UnknownVersion:
                damaged = False
            if damaged:
                yield Problem("records", lane.name, name.decode(errors="backslashreplace"))
        if cursor == b"0":
            return


def _readable(record: bytes) -> Entry | None:
    try:
        return parked.parse(record)
    except (Unreadable, UnknownVersion):
        return None  # `_damaged` reports it, or a later release applies it.


def _parked(redis: RedisConnection, lane: Lane) -> Iterator[list[Entry]]:
    cursor: Any = b"0"
    while True:
        cursor, pairs = redis.call("HSCAN", lane.parked, cursor, "COUNT", _PAGE)
        entries = [e for e in map(_readable, pairs[1::2]) if e is not None]
        if entries:
            yield entries
        if cursor == b"0":
            return
