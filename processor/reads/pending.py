"""The pending writes that a read needs, taken from Redis before the rows are read (rule 32).

A read of one row needs what touches that row. Such a transaction may also touch other rows, and may
have no effect at all because of one of them: its insert finds the key taken, its expectation is not
met. Then that other row is needed as well, with all that touches it, and so on. An operation that
names no single row makes the whole table needed. If one row is all that is needed, it costs one
round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from typing import Any

from processor.buffer import overlay, replica_status
from processor.buffer.accepted import AcceptedEntries, Proof
from processor.buffer.overlay import Overlay, Pending
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import DatabaseError, DatabaseUnavailable, RedisUnavailable
from processor.telemetry.status import Replica
from processor.transaction.ids import is_id
from processor.transaction.write_set import Touch, decides, touch

#: With more statements than this in the overlay, their ids are not looked up in the ledger.
_MOST_STATEMENTS = 500
#: Seconds after which the search for an entry is repeated.
_GIVEN_UP = 1.0


@dataclass(slots=True)
class PendingSet:
    """What is pending for a read, in accept order, and which rows decide about its effect.

    `tables` are needed whole; of the tables in `rows` only the rows with these digests. `uncached`
    are the pending transactions whose changes are too large to remember. `statements` are the ids
    of transactions with a registered statement; with `unsure` there are too many to look up, or a
    record of a later release.
    """

    pending: list[Pending] = field(default_factory=list)
    uncached: list[Pending] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    rows: dict[str, set[str]] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)
    unsure: bool = False
    #: Whether the write that the read must include is in the overlay.
    has_required: bool = False
    replicas: dict[str, Replica] = field(default_factory=dict)
    #: Replica -> position that it must have replayed, since it was lost, before it is read again.
    missed: dict[str, str] = field(default_factory=dict)
    #: System identifier and timeline of the primary that was last written to.
    primary: tuple[str, int] | None = None


@dataclass(slots=True)
class DecodedRecord:
    """A decoded record, with what decides whether its transaction has an effect.

    `cached` is whether the cache remembers it; it does not remember large ones. `accepted` is
    whether it is proven (rule 105), None as long as nobody has looked.
    """

    pending: Pending
    deciding: tuple[tuple[str, Touch], ...]
    cached: bool
    accepted: bool | None = None
    #: When it was looked at last (monotonic), if the search was given up.
    given_up: float = float("-inf")


class RecordCache:
    """Decoded records: a row that is read often has the same ones each time.

    `in_ledger` returns which of these ids the ledger of the primary has as applied. Raises
    DatabaseUnavailable and DatabaseError.
    """

    _MOST = 5_000
    _LARGEST = 2_000

    def __init__(
        self, keys: Overlay, entries: AcceptedEntries,
        in_ledger: Callable[[Sequence[str]], Collection[str]],
    ) -> None:  # fmt: skip
        self._keys = keys
        self._entries = entries
        self._in_ledger = in_ledger
        self._decoded: dict[bytes, DecodedRecord | None] = {}

    def decode(self, record: bytes) -> DecodedRecord | None:
        """Return a record decoded; None if it is not a valid record."""
        found = self._decoded.get(record)
        return found if found is not None else self._decode(record)

    def _decode(self, record: bytes) -> DecodedRecord | None:
        pending = overlay.record(record)
        if pending is None:
            return None
        cached = len(record) <= self._LARGEST
        accepted = self._entries.has(pending.id, record) or None
        decoded = DecodedRecord(pending, tuple(deciding(self._keys, pending)), cached, accepted)
        if cached:
            if len(self._decoded) >= self._MOST:
                self._decoded.clear()
            self._decoded[record] = decoded
        return decoded

    def prove(self, redis: RedisConnection, records: Sequence[DecodedRecord]) -> bool:
        """Find out which records were accepted; return whether some remain unknown (rule 105)."""
        now = time.monotonic()
        asked = [each for each in records if now - each.given_up > _GIVEN_UP]
        proofs = self._entries.prove(redis, [each.pending for each in asked]) if asked else {}
        absent = [i for i, proof in proofs.items() if proof is not Proof.ACCEPTED]
        recorded: Collection[str] | None = ()
        if absent:
            try:
                recorded = self._in_ledger(absent)
            except (DatabaseError, DatabaseUnavailable):
                recorded = None
        for each in asked:
            proof = proofs[each.pending.id]
            if proof is Proof.ACCEPTED or each.pending.id in (recorded or ()):
                each.accepted = True
            elif proof is Proof.NOT_IN_REDIS and recorded is not None:
                each.accepted = False
            else:
                each.given_up = now
        return any(each.accepted is None for each in records)


class PendingWrites:
    """Gathers what is pending for one read."""

    def __init__(
        self, redis: RedisConnection, keys: Overlay, cache: RecordCache,
        has_digests: Callable[[str], bool],
    ) -> None:  # fmt: skip
        """`has_digests` returns whether the rows of a declared table can be found by digests."""
        self._redis = redis
        self._keys = keys
        self._cache = cache
        self._has_digests = has_digests
        self._found = PendingSet()
        self._records: dict[str, DecodedRecord] = {}
        self._orders: dict[str, list[str]] = {}

    def gather(self, table: str, digest: str | None, required: str | None = None) -> PendingSet:
        """Return what is pending for the row with this digest, or for the whole table.

        `required` is the id of a write that the read must include. Raises RedisUnavailable and
        RedisRefused.
        """
        keys, found = self._keys, self._found
        one_row = digest is not None and self._has_digests(table)
        name = keys.row(table, digest or "") if one_row else keys.table(table)
        first, rare, primary, *rest = self._calls([
            ("LRANGE", name, 0, -1),
            ("EXISTS", keys.wide(table), keys.statements, keys.missed),
            ("GET", keys.primary),
            *((("HEXISTS", keys.prefix, required),) if required else ()),
            *((("HGETALL", keys.replicas),) if keys.servers else ()),
        ])  # fmt: skip
        found.replicas = replica_status.parse_replicas(rest.pop()) if keys.servers else {}
        found.primary = replica_status.parse_primary(primary)
        found.has_required = bool(rest and rest[0])
        wide = self._gather_rare(table) if rare else False
        if one_row and not wide:
            found.rows[table] = {digest or ""}
            self._add_records(name, first)
        else:
            found.tables.add(table)
            # If a wide operation makes the whole table needed, the list of one row is of no use.
            self._add_ids(name, first) if not one_row else self._fetch()
        self._drop_unproven(required)
        while self._grow():
            self._fetch()
            self._drop_unproven(required)
        found.pending = by_due(self._in_order())
        found.uncached = [each.pending for each in self._records.values() if not each.cached]
        return found

    def _gather_rare(self, table: str) -> bool:
        """Gather what is seldom there: statements, missed positions; whether any is wide."""
        found = self._found
        wide, statements, missed = self._calls([
            ("EXISTS", self._keys.wide(table)),
            ("LRANGE", self._keys.statements, 0, _MOST_STATEMENTS),
            ("HGETALL", self._keys.missed),
        ])  # fmt: skip
        ids = [each.decode(errors="replace") for each in statements]
        found.statements = [each for each in ids[:_MOST_STATEMENTS] if is_id(each)]
        found.unsure = found.unsure or len(ids) > _MOST_STATEMENTS
        pairs = zip(missed[::2], missed[1::2], strict=True)
        found.missed = {
            name.decode(errors="replace"): position.decode(errors="replace")
            for name, position in pairs
        }
        return bool(wide)

    def _grow(self) -> bool:
        """Add the rows and tables that decide about the pending writes; False if none is new."""
        tables, rows = self._undecided()
        for table, digest in rows:
            self._found.rows.setdefault(table, set()).add(digest)
        self._need_whole(tables)
        return bool(tables or rows)

    def _need_whole(self, tables: Iterable[str]) -> None:
        for table in tables:
            self._found.tables.add(table)
            self._found.rows.pop(table, None)

    def _drop_unproven(self, required: str | None) -> None:
        """Drop the records that were never accepted, or of which that is not known."""
        doubtful = [each for each in self._records.values() if not each.accepted]
        if not doubtful:
            return
        new = [each for each in doubtful if each.accepted is None]
        if new and self._cache.prove(self._redis, new):
            self._found.unsure = True
        dropped = [each.pending.id for each in doubtful if not each.accepted]
        if dropped:
            # What a read must include may not be missing without a word.
            self._found.has_required = self._found.has_required and required not in dropped
            self._records = {i: each for i, each in self._records.items() if each.accepted}
            for name, order in self._orders.items():
                self._orders[name] = [i for i in order if i in self._records]

    def _fetch(self) -> None:
        """Fetch all that is pending for what is needed, at one moment.

        Lists read one after the other could show a transaction and not the one before it.
        """
        keys, found = self._keys, self._found
        rows = [keys.row(table, each) for table, digests in found.rows.items() for each in digests]
        tables, by_row = list(found.tables), list(found.rows)
        asked = [
            *(("LRANGE", name, 0, -1) for name in rows),
            *(("LRANGE", keys.table(table), 0, -1) for table in tables),
            *(("EXISTS", keys.wide(table)) for table in by_row),
        ]
        replies = self._calls([("MULTI",), *asked, ("EXEC",)])[-1]
        if any(isinstance(reply, Exception) for reply in replies):
            raise RedisUnavailable(
                "cannot read pending writes: keys of the overlay hold another type of data"
            )
        self._records, self._orders = {}, {}
        for name, records in zip(rows, replies, strict=False):
            self._add_records(name, records)
        for table, ids in zip(tables, replies[len(rows) :], strict=False):
            self._add_ids(keys.table(table), ids)
        wide = replies[len(rows) + len(tables) :]
        needed = [table for table, exists in zip(by_row, wide, strict=True) if exists]
        if needed:
            self._need_whole(needed)
            self._fetch()

    def _undecided(self) -> tuple[set[str], set[tuple[str, str]]]:
        """Return the tables and rows that decide about pending writes and are not needed yet."""
        tables: set[str] = set()
        rows: set[tuple[str, str]] = set()
        for table, touched in chain.from_iterable(r.deciding for r in self._records.values()):
            if table in self._found.tables:
                continue
            if touched.wide or not self._has_digests(table):
                tables.add(table)
            else:
                needed = self._found.rows.get(table, set())
                rows.update((table, digest) for digest in touched.rows if digest not in needed)
        return tables, rows

    def _decoded(self, record: bytes) -> DecodedRecord | None:
        """Decode a record; what a later release wrote is unknown, and the read says so."""
        decoded = self._cache.decode(record)
        if decoded is None and overlay.is_later(record):
            self._found.unsure = True
        return decoded

    def _add_records(self, name: str, records: Iterable[bytes]) -> None:
        order: dict[str, None] = {}
        for each in map(self._decoded, records):
            if each is not None:
                order[each.pending.id] = None
                self._records.setdefault(each.pending.id, each)
        self._orders[name] = list(order)

    def _add_ids(self, name: str, ids: Sequence[bytes]) -> None:
        order = list(dict.fromkeys(each.decode(errors="replace") for each in ids))
        new = [each for each in order if each not in self._records]
        if new:
            # A record that was removed since is in the ledger of every server that is read.
            for each in self._calls([("HMGET", self._keys.prefix, *new)])[0]:
                decoded = self._decoded(each) if each is not None else None
                if decoded is not None:
                    self._records.setdefault(decoded.pending.id, decoded)
        self._orders[name] = [each for each in order if each in self._records]

    def _in_order(self) -> list[Pending]:
        """Join the lists: each is in accept order; ids without a common list have no order."""
        if len(self._orders) == 1:
            return [self._records[each].pending for each in next(iter(self._orders.values()))]
        sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(self._records, ()))
        for order in self._orders.values():
            for before, after in pairwise(order):
                sorter.add(after, before)
        try:
            return [self._records[each].pending for each in sorter.static_order()]
        except CycleError:
            # A transaction that stood twice is being removed: one list has only its second place.
            return sorted((r.pending for r in self._records.values()), key=lambda each: each.at)

    def _calls(self, commands: Sequence[Command]) -> list[Any]:
        return checked(self._redis.calls(commands))


def deciding(keys: Overlay, pending: Pending) -> Iterator[tuple[str, Touch]]:
    """Yield what decides whether a transaction has an effect, by declared table."""
    for operation in pending.operations:
        for table in keys.declared.names(operation.table):  # type: ignore[union-attr]
            columns = keys.declared.keys[table]
            if decides(columns, operation):
                yield table, touch(columns, operation)


def by_due(pending: list[Pending]) -> list[Pending]:
    """Move delayed work to where it enters its lane: behind all that is accepted until then."""
    delayed = [each for each in pending if each.due is not None]
    if not delayed:
        return pending
    delayed.sort(key=lambda each: each.due or 0.0)
    merged: list[Pending] = []
    for each in pending:
        if each.due is not None:
            continue
        while delayed and delayed[0].due is not None and delayed[0].due < each.at:
            merged.append(delayed.pop(0))
        merged.append(each)
    return merged + delayed
