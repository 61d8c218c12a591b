"""What is pending for a read: taken from Redis before the rows are, and never after (rule 32).

A read of one row needs what touches that row. If such a transaction may have no effect at all for
what it meets elsewhere - its insert finds the key taken, its expectation is not met - that other
row is needed as well, with all that touches it, and so on. What names no single row makes the whole
table needed. A row that is all there is to it costs one round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from typing import Any, NamedTuple

from processor.buffer import overlay, replica_status
from processor.buffer.overlay import Overlay, Pending
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import RedisUnavailable
from processor.telemetry.status import Replica
from processor.transaction.write_set import Touch, decides, touch

#: More statements than this in the overlay are not asked for one by one.
_STATEMENTS = 500


@dataclass(slots=True)
class Gathered:
    """What is pending for a read, in accept order, and what rows are needed to know its effect.

    `large` are those of the pending that nobody should remember. `tables` are needed whole, of the
    tables in `rows` only the rows with these marks. `statements` are the ids with a statement in
    them, `unsure` tells that there are more than can be asked for.
    """

    pending: list[Pending] = field(default_factory=list)
    large: list[Pending] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    rows: dict[str, set[str]] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)
    unsure: bool = False
    #: Whether the write that a reader insists on stands in the overlay.
    there: bool = False
    replicas: dict[str, Replica] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    #: System and timeline of the primary that was written to last.
    primary: tuple[str, int] | None = None


class Known(NamedTuple):
    """A record that was decoded, and what decides whether its transaction has an effect.

    `kept` tells whether it is remembered: large ones are not.
    """

    pending: Pending
    deciding: tuple[tuple[str, Touch], ...]
    kept: bool


class Decoded:
    """Records that were met before: a row that is read often has the same ones each time."""

    _MOST = 5_000
    _LARGEST = 2_000

    def __init__(self, keys: Overlay) -> None:
        self._keys = keys
        self._known: dict[bytes, Known | None] = {}

    def of(self, record: bytes) -> Known | None:
        """What a record says; None if it is none."""
        found = self._known.get(record)
        return found if found is not None else self._decode(record)

    def _decode(self, record: bytes) -> Known | None:
        pending = overlay.record(record)
        if pending is None:
            return None
        kept = len(record) <= self._LARGEST
        made = Known(pending, tuple(deciding(self._keys, pending)), kept)
        if kept:
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[record] = made
        return made


class PendingWrites:
    """Gathers for one read."""

    def __init__(
        self, redis: RedisConnection, keys: Overlay, decoded: Decoded,
        marked: Callable[[str], bool],
    ) -> None:  # fmt: skip
        """`marked` tells of a declared table whether its rows may be found by their marks."""
        self._redis = redis
        self._keys = keys
        self._decoded = decoded
        self._marked = marked
        self._found = Gathered()
        self._records: dict[str, Known] = {}
        self._orders: dict[str, list[str]] = {}

    def gather(self, table: str, mark: str | None, after: str | None = None) -> Gathered:
        """What is pending for the row with this mark, or for the whole table.

        Raises RedisUnavailable and RedisRefused.
        """
        keys, found = self._keys, self._found
        one = mark is not None and self._marked(table)
        name = keys.row(table, mark or "") if one else keys.table(table)
        first, some, primary, *there = self._calls([
            ("LRANGE", name, 0, -1),
            ("EXISTS", keys.wide(table), keys.statements, keys.missed),
            ("GET", keys.primary),
            *((("HEXISTS", keys.prefix, after),) if after else ()),
            *((("HGETALL", keys.replicas),) if keys.servers else ()),
        ])  # fmt: skip
        found.replicas = replica_status.parse_replicas(there.pop()) if keys.servers else {}
        found.primary = replica_status.parse_primary(primary)
        found.there = bool(there and there[0])
        wide = self._rare(table) if some else False
        if one and not wide:
            found.rows[table] = {mark or ""}
            self._take(name, first)
        else:
            found.tables.add(table)
            # Taken once more if one row would have done, were there nothing wide.
            self._take_ids(name, first) if not one else self._fetch()
        while self._grown():
            self._fetch()
        found.pending = by_due(self._in_order())
        found.large = [known.pending for known in self._records.values() if not known.kept]
        return found

    def _rare(self, table: str) -> bool:
        """What seldom is there: statements, what is missed; and whether anything is wide."""
        found = self._found
        wide, statements, missed = self._calls([
            ("EXISTS", self._keys.wide(table)),
            ("LRANGE", self._keys.statements, 0, _STATEMENTS),
            ("HGETALL", self._keys.missed),
        ])  # fmt: skip
        ids = [each.decode(errors="replace") for each in statements]
        found.statements = [each for each in ids[:_STATEMENTS] if overlay.is_id(each)]
        found.unsure = len(ids) > _STATEMENTS
        pairs = zip(missed[::2], missed[1::2], strict=True)
        found.missed = {
            name.decode(errors="replace"): position.decode(errors="replace")
            for name, position in pairs
        }
        return bool(wide)

    def _grown(self) -> bool:
        """See what else decides about what is pending; False if all of it is there."""
        tables, rows = self._missing()
        for table, mark in rows:
            self._found.rows.setdefault(table, set()).add(mark)
        self._need(tables)
        return bool(tables or rows)

    def _need(self, tables: Iterable[str]) -> None:
        for table in tables:
            self._found.tables.add(table)
            self._found.rows.pop(table, None)

    def _fetch(self) -> None:
        """All that is pending for what is needed, as it is at one moment.

        Lists that were read one after the other could show a transaction and not the one before.
        """
        keys, found = self._keys, self._found
        rows = [keys.row(table, mark) for table, marks in found.rows.items() for mark in marks]
        tables, single = list(found.tables), list(found.rows)
        asked = [
            *(("LRANGE", name, 0, -1) for name in rows),
            *(("LRANGE", keys.table(table), 0, -1) for table in tables),
            *(("EXISTS", keys.wide(table)) for table in single),
        ]
        replies = self._calls([("MULTI",), *asked, ("EXEC",)])[-1]
        if any(isinstance(reply, Exception) for reply in replies):
            raise RedisUnavailable("pending writes cannot be read: something else has their names")
        self._records, self._orders = {}, {}
        for name, records in zip(rows, replies, strict=False):
            self._take(name, records)
        for table, ids in zip(tables, replies[len(rows) :], strict=False):
            self._take_ids(keys.table(table), ids)
        wide = replies[len(rows) + len(tables) :]
        needed = [table for table, there in zip(single, wide, strict=True) if there]
        if needed:
            self._need(needed)
            self._fetch()

    def _missing(self) -> tuple[set[str], set[tuple[str, str]]]:
        tables: set[str] = set()
        rows: set[tuple[str, str]] = set()
        for table, touched in chain.from_iterable(k.deciding for k in self._records.values()):
            if table in self._found.tables:
                continue
            if touched.wide or not self._marked(table):
                tables.add(table)
            else:
                known = self._found.rows.get(table, set())
                rows.update((table, mark) for mark in touched.rows if mark not in known)
        return tables, rows

    def _take(self, name: str, records: Iterable[bytes]) -> None:
        order: dict[str, None] = {}
        for each in map(self._decoded.of, records):
            if each is not None:
                order[each.pending.id] = None
                self._records.setdefault(each.pending.id, each)
        self._orders[name] = list(order)

    def _take_ids(self, name: str, ids: Sequence[bytes]) -> None:
        order = list(dict.fromkeys(each.decode(errors="replace") for each in ids))
        new = [each for each in order if each not in self._records]
        if new:
            # One that was taken away since is on every server that is read.
            for each in self._calls([("HMGET", self._keys.prefix, *new)])[0]:
                read = self._decoded.of(each) if each is not None else None
                if read is not None:
                    self._records.setdefault(read.pending.id, read)
        self._orders[name] = [each for each in order if each in self._records]

    def _in_order(self) -> list[Pending]:
        """Each list is in accept order, and what has no list in common is in no order at all."""
        if len(self._orders) == 1:
            return [self._records[each].pending for each in next(iter(self._orders.values()))]
        sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(self._records, ()))
        for order in self._orders.values():
            for before, after in pairwise(order):
                sorter.add(after, before)
        try:
            return [self._records[each].pending for each in sorter.static_order()]
        except CycleError:
            # Something is just being taken away: its second place is first in a list by now.
            return sorted((k.pending for k in self._records.values()), key=lambda each: each.at)

    def _calls(self, commands: Sequence[Command]) -> list[Any]:
        return checked(self._redis.calls(commands))


def deciding(keys: Overlay, pending: Pending) -> Iterator[tuple[str, Touch]]:
    """What decides about a transaction, by declared table."""
    for operation in pending.operations:
        for table in keys.declared.names(operation.table):  # type: ignore[union-attr]
            columns = keys.declared.keys[table]
            if decides(columns, operation):
                yield table, touch(columns, operation)


def by_due(pending: list[Pending]) -> list[Pending]:
    """Delayed work enters its lane when it is due: behind all that was accepted until then."""
    late = [each for each in pending if each.due is not None]
    if not late:
        return pending
    late.sort(key=lambda each: each.due or 0.0)
    merged: list[Pending] = []
    for each in pending:
        if each.due is not None:
            continue
        while late and late[0].due is not None and late[0].due < each.at:
            merged.append(late.pop(0))
        merged.append(each)
    return merged + late
