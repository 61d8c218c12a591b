"""Pending writes of the tables in `overlay.tables`, kept in Redis for reads that merge them (P9).

A transaction is shown by the same write that accepts it. It stays until the ledgers of all servers
that are read from have it, however long an outage lasts (rule 32). The log says in which lists it
is, so that it can be removed from them even after the settings have changed. Keys of a buffer:

=================================== ====== =========================================================
<ns>:overlay                        hash   transaction id -> record, as JSON (`Pending`)
<ns>:overlay:log                    stream accepted transactions: id, and the lists that it is in
<ns>:overlay:table:<table>          list   ids that touch the table, in accept order
<ns>:overlay:row:<table>:<digest>   list   records that touch a row (digests: `write_set`)
<ns>:overlay:wide:<table>           list   ids with an operation that may touch any row
<ns>:overlay:statements             list   ids with a statement, which may touch any table
<ns>:overlay:cache:<name>           list   id and value, of transactions with a cache value
<ns>:overlay:proven                 hash   ids of settled transactions: accepted ones (rule 105)
<ns>:overlay:missed                 hash   replica -> position of removed writes that it lacks
<ns>:cleared                        hash   replica -> its position when writes were last removed
=================================== ====== =========================================================

A submit that is repeated after a lost reply is in the lists twice, like its entry. Its first
element counts, and each entry of the log removes one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import RedisRefused
from processor.transaction import documents
from processor.transaction.encoding import Encoded
from processor.transaction.entry import Entry
from processor.transaction.ids import canonical_id, is_id
from processor.transaction.operations import (
    VERSION,
    Operation,
    Statement,
    encoder,
    ordered_encoder,
)
from processor.transaction.values import Json
from processor.transaction.write_set import Declared, touch


class Pending(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A pending transaction: its operations on the tables of the overlay, in order.

    `at` (the time of its submit) and `due` are in Unix seconds. `lane` is where its entry is, `v`
    the version of the entry's envelope, `order` has the orders of keys (see `documents`). Release
    0.1 wrote none of these three.
    """

    id: str
    at: float
    due: float | None = None
    lane: str = ""
    v: int = 1
    order: documents.Order | None = None
    #: Last, as in an entry, so that the two can be compared as bytes (see `accepted`).
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry of the log: a transaction, and the lists that it is in.

    `entry_id` is "" for a record that the log has not.
    """

    entry_id: str
    id: str
    lists: tuple[str, ...]


_decoder = msgspec.json.Decoder(Pending, float_hook=Decimal)
#: The newest version of the records that this release reads.
_READS = int(VERSION)


class Overlay:
    """The keys of one buffer's overlay, and the commands on them."""

    def __init__(self, settings: Settings) -> None:
        section = settings.overlay
        self.prefix = f"{settings.namespace}:overlay"
        self.log = f"{self.prefix}:log"
        self.statements = f"{self.prefix}:statements"
        self.missed = f"{self.prefix}:missed"
        self.proven = f"{self.prefix}:proven"
        self.cleared = f"{settings.namespace}:cleared"
        #: The keys of `replica_status`, used if replicas are read from.
        self.primary = f"{settings.namespace}:primary"
        self.replicas = f"{settings.namespace}:replicas"
        self.servers = bool(settings.replicas.servers)
        self.declared = Declared(section.tables, settings.database.search_path)

    def table(self, table: str) -> str:
        """The key of the list of ids that touch a table."""
        return f"{self.prefix}:table:{table}"

    def row(self, table: str, digest: str) -> str:
        """The key of the list of records that touch a row."""
        return f"{self.prefix}:row:{table}:{digest}"

    def wide(self, table: str) -> str:
        """The key of the list of ids that may touch any row of a table."""
        return f"{self.prefix}:wide:{table}"

    def cache(self, name: str) -> str:
        """The key of the list of values cached under a name."""
        return f"{self.prefix}:cache:{name}"

    def show(self, encoded: Encoded, at: float, lane: str) -> list[Command]:
        """Return the commands that show a transaction; none if it does not concern the overlay."""
        concerned = [
            each for each in encoded.operations
            if not isinstance(each, Statement) and self.declared.names(each.table)
        ]  # fmt: skip
        names, rows = self._touched(encoded.operations)
        if not (names or rows or encoded.cache):
            return []
        order = documents.order_of(concerned) if encoded.ordered else None
        record = encoder.encode(
            Pending(
                encoded.id, at, encoded.due, lane, int(encoded.version), order,
                tuple(concerned),
            )
        )  # fmt: skip
        puts: dict[str, bytes | str] = dict.fromkeys(names, encoded.id)
        puts |= dict.fromkeys(rows, record)
        for name, value in (encoded.cache or {}).items():
            puts[self.cache(name)] = ordered_encoder.encode([encoded.id, value])
        lists = encoder.encode([name.removeprefix(self.prefix) for name in puts])
        return [
            ("HSETNX", self.prefix, encoded.id, record),
            ("XADD", self.log, "*", "id", encoded.id, "lists", lists),
            *(("RPUSH", name, put) for name, put in puts.items()),
        ]

    def _touched(self, operations: Sequence[Operation]) -> tuple[list[str], list[str]]:
        """Return the lists of ids and the lists of records that these operations belong into."""
        tables: dict[str, None] = {}
        rows: dict[str, None] = {}
        wide: dict[str, None] = {}
        statement = False
        for operation in operations:
            if isinstance(operation, Statement):
                statement = statement or bool(self.declared.keys)
                continue
            for name in self.declared.names(operation.table):
                tables[self.table(name)] = None
                touched = touch(self.declared.keys[name], operation)
                rows.update((self.row(name, digest), None) for digest in touched.rows)
                if touched.wide:
                    wide[self.wide(name)] = None
        return [*tables, *wide, *([self.statements] if statement else ())], [*rows]

    def lists(self, pending: Pending) -> tuple[str, ...]:
        """Return the lists that a record belongs into, as its log entry would name them."""
        names, rows = self._touched(pending.operations)
        return tuple(name.removeprefix(self.prefix) for name in (*names, self.statements, *rows))

    def is_list(self, key: bytes) -> bool:
        """Whether a key has the name of one of the lists."""
        part = key.decode(errors="replace").removeprefix(f"{self.prefix}:").partition(":")[0]
        return part in ("table", "row", "wide", "cache", "statements")

    def prove(self, entries: Sequence[Entry]) -> list[Command]:
        """Return the command that keeps the proof of entries that are to be settled (rule 105)."""
        pairs = [
            part for entry in entries if self._concerns(entry.operations)
            for part in (entry.id, entry.hash)
        ]  # fmt: skip
        return [("HSET", self.proven, *pairs)] if pairs else []

    def _concerns(self, operations: Sequence[Operation]) -> bool:
        names = self.declared.names
        return any(isinstance(each, Statement) or names(each.table) for each in operations)

    # Removal.

    def page(self, redis: RedisConnection, after: str, count: int) -> list[Shown]:
        """Return entries of the log after an entry id, or from the head ("-"), oldest first."""
        start = after if after == "-" else f"({after}"
        found = redis.call("XRANGE", self.log, start, "+", "COUNT", count)
        return [self._shown(entry_id.decode(), fields) for entry_id, fields in found]

    @staticmethod
    def _shown(entry_id: str, fields: Sequence[bytes]) -> Shown:
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            found = canonical_id("id", named.get(b"id", b"").decode())
            lists = tuple(msgspec.json.decode(named.get(b"lists", b"[]"), type=list[str]))
        except ValueError:
            # Another program wrote this entry: it belongs to no transaction.
            return Shown(entry_id, "", ())
        return Shown(entry_id, found, lists)

    def hide(self, redis: RedisConnection, gone: Sequence[Shown]) -> None:
        """Remove transactions: from their lists, then their records, last the entries of the log.

        This may be done twice. A crash in between leaves an entry in the log, by which the removal
        is found and repeated.
        """
        if not gone:
            return
        records = checked(redis.calls([("HMGET", self.prefix, *(each.id for each in gone))]))[0]
        first: list[tuple[str, str, bytes]] = []
        for each, record in zip(gone, records, strict=True):
            for name in each.lists:
                element = record if name.startswith(":row:") else each.id.encode()
                first.append((self.prefix + name, each.id, element or b""))
        # Removes the first of equal elements: near the head, where Redis finds it quickly.
        removed = redis.calls([("LREM", name, 1, element) for name, _, element in first])
        rest = [one for one, count in zip(first, removed, strict=True) if _count(count) == 0]
        self._remove_by_id(redis, [(name, found) for name, found, _ in rest])
        redis.call("HDEL", self.prefix, *(each.id for each in gone))
        redis.call("HDEL", self.proven, *(each.id for each in gone))
        logged = [each.entry_id for each in gone if each.entry_id]
        if logged:
            redis.call("XDEL", self.log, *logged)

    @staticmethod
    def _remove_by_id(redis: RedisConnection, named: Sequence[tuple[str, str]]) -> None:
        """Remove elements found by their id alone: cache values, and records of another payload."""
        if not named:
            return
        lists = checked(redis.calls([("LRANGE", name, 0, -1) for name, _ in named]))
        for (name, found), elements in zip(named, lists, strict=True):
            heads = (b'{"id":"%s"' % found.encode(), b'["%s"' % found.encode())
            for element in {e for e in elements if e.startswith(heads)}:
                redis.call("LREM", name, 0, element)

    def kept(self, redis: RedisConnection, ids: Sequence[str]) -> set[str]:
        """Return those of the ids that are still shown."""
        if not ids or not redis.call("EXISTS", self.prefix):
            return set()
        found = checked(redis.calls([("HEXISTS", self.prefix, each) for each in ids]))
        return {each for each, there in zip(ids, found, strict=True) if there}


def record(found: bytes) -> Pending | None:
    """Return the pending transaction of a record, None if it is invalid."""
    try:
        read = _decoder.decode(found)
        if read.v > _READS:
            return None
        if read.order is not None:
            documents.reorder(read.operations, read.order)
        for operation in read.operations:
            documents.restore("json", operation, Json.read)
        # Anyone who may write to Redis may have written this record, and its id goes into SQL.
        return read if is_id(read.id) else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Version(msgspec.Struct):
    v: int = 1


_version = msgspec.json.Decoder(_Version)


def is_later(found: bytes) -> bool:
    """Whether a record is one of a later release, whose operations are unknown here."""
    try:
        return _version.decode(found).v > _READS
    except (msgspec.MsgspecError, RecursionError):
        return False


def value(found: bytes) -> Any:
    """Return the value of an element of a `:cache:` list, None if it is invalid."""
    try:
        return msgspec.json.decode(found, type=tuple[str, Any])[1]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _count(reply: Any) -> int:
    if isinstance(reply, RedisRefused):
        if reply.code != "WRONGTYPE":
            raise reply
        return -1  # Another program wrote this key.
    return int(reply)
