"""Pending writes of the tables in `overlay.tables`, kept in Redis for those who read (P9).

A transaction is shown by the same write that accepts it, and stays until the ledgers of all servers
that people read from have it, whatever the outage lasts (rule 32). Where it stands is told by the
log, so that it can be taken away whatever the settings say by then. Keys of a buffer:

=================================== ====== =========================================================
<ns>:overlay                        hash   transaction id -> record, as JSON (`Pending`)
<ns>:overlay:log                    stream what was accepted: id, and the lists that it stands in
<ns>:overlay:table:<table>          list   ids that touch the table, in accept order
<ns>:overlay:row:<table>:<mark>     list   records that touch a row (see `footprint` for marks)
<ns>:overlay:wide:<table>           list   ids with an operation that names no single row
<ns>:overlay:statements             list   ids with a statement, which may touch any table
<ns>:overlay:cache:<name>           list   id and value, of transactions that bring one
<ns>:overlay:missed                 hash   replica -> position; what was taken away without it
<ns>:cleared                        hash   replica -> position that it had when some was taken away
=================================== ====== =========================================================

A submit whose reply was lost stands here twice, like its entry: the first place counts, and each
entry of the log takes one away.
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
from processor.transaction.builder import Encoded
from processor.transaction.ids import canonical_id
from processor.transaction.operations import Operation, Statement, encoder
from processor.transaction.write_set import Declared, touch


class Pending(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A transaction as far as the overlay's tables are concerned.

    `at` and `due` are Unix seconds; `operations` are those on these tables, in order.
    """

    id: str
    at: float
    operations: tuple[Operation, ...] = ()
    due: float | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry of the log."""

    entry_id: str
    id: str
    lists: tuple[str, ...]


_decoder = msgspec.json.Decoder(Pending, float_hook=Decimal)


class Overlay:
    """The names of one buffer's keys, and what is put there."""

    def __init__(self, settings: Settings) -> None:
        section = settings.overlay
        self.prefix = f"{settings.namespace}:overlay"
        self.log = f"{self.prefix}:log"
        self.statements = f"{self.prefix}:statements"
        self.missed = f"{self.prefix}:missed"
        self.cleared = f"{settings.namespace}:cleared"
        #: What `replication` tells of primary and replicas, if any are read from.
        self.primary = f"{settings.namespace}:primary"
        self.replicas = f"{settings.namespace}:replicas"
        self.servers = bool(settings.replicas.servers)
        self.declared = Declared(section.tables, settings.database.search_path)

    def table(self, table: str) -> str:
        """The list of all that touches a table."""
        return f"{self.prefix}:table:{table}"

    def row(self, table: str, mark: str) -> str:
        """The list of all that touches a row."""
        return f"{self.prefix}:row:{table}:{mark}"

    def wide(self, table: str) -> str:
        """The list of all that may touch any row of a table."""
        return f"{self.prefix}:wide:{table}"

    def cache(self, name: str) -> str:
        """The list of values that were given for a name."""
        return f"{self.prefix}:cache:{name}"

    def show(self, encoded: Encoded, at: float) -> list[Command]:
        """The commands that show a transaction; none if it does not concern the overlay."""
        keys = self.declared.keys
        if not keys and not encoded.cache:
            return []
        concerned: list[Operation] = []
        tables: dict[str, None] = {}
        rows: dict[tuple[str, str], None] = {}
        wide: dict[str, None] = {}
        statement = False
        for operation in encoded.operations:
            if isinstance(operation, Statement):
                statement = statement or bool(keys)
                continue
            names = self.declared.names(operation.table)
            if names:
                concerned.append(operation)
            for name in names:
                tables[name] = None
                touched = touch(keys[name], operation)
                rows.update(((name, mark), None) for mark in touched.rows)
                if touched.wide:
                    wide[name] = None
        if not (concerned or statement or encoded.cache):
            return []
        record = encoder.encode(Pending(encoded.id, at, tuple(concerned), encoded.due))
        puts: dict[str, bytes | str] = {self.table(name): encoded.id for name in tables}
        puts |= {self.wide(name): encoded.id for name in wide}
        puts |= {self.row(*each): record for each in rows}
        if statement:
            puts[self.statements] = encoded.id
        for name, value in (encoded.cache or {}).items():
            puts[self.cache(name)] = encoder.encode([encoded.id, value])
        lists = encoder.encode([name.removeprefix(self.prefix) for name in puts])
        return [
            ("HSETNX", self.prefix, encoded.id, record),
            ("XADD", self.log, "*", "id", encoded.id, "lists", lists),
            *(("RPUSH", name, put) for name, put in puts.items()),
        ]

    # Taken away.

    def page(self, redis: RedisConnection, after: str, count: int) -> list[Shown]:
        """Entries of the log behind one ("-": from its head), oldest first."""
        start = after if after == "-" else f"({after}"
        found = redis.call("XRANGE", self.log, start, "+", "COUNT", count)
        return [self._shown(entry_id.decode(), fields) for entry_id, fields in found]

    @staticmethod
    def _shown(entry_id: str, fields: Sequence[bytes]) -> Shown:
        told = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            found = canonical_id("id", told.get(b"id", b"").decode())
            lists = tuple(msgspec.json.decode(told.get(b"lists", b"[]"), type=list[str]))
        except ValueError:
            # Put there by somebody else: nothing stands behind it.
            return Shown(entry_id, "", ())
        return Shown(entry_id, found, lists)

    def hide(self, redis: RedisConnection, gone: Sequence[Shown]) -> None:
        """Take transactions away: out of their lists, then the records, the log's entries last.

        What is done twice is done once; a crash in between leaves an entry that is found again.
        """
        if not gone:
            return
        records = checked(redis.calls([("HMGET", self.prefix, *(each.id for each in gone))]))[0]
        first: list[tuple[str, str, bytes]] = []
        for each, record in zip(gone, records, strict=True):
            for name in each.lists:
                element = record if name.startswith(":row:") else each.id.encode()
                first.append((self.prefix + name, each.id, element or b""))
        # Of two that are equal the first: it stands near the head, where it is found at once.
        left = redis.calls([("LREM", name, 1, element) for name, _, element in first])
        rest = [one for one, count in zip(first, left, strict=True) if _count(count) == 0]
        self._look_for(redis, [(name, found) for name, found, _ in rest])
        redis.call("HDEL", self.prefix, *(each.id for each in gone))
        redis.call("XDEL", self.log, *(each.entry_id for each in gone))

    @staticmethod
    def _look_for(redis: RedisConnection, places: Sequence[tuple[str, str]]) -> None:
        """Take away what is known by its id alone: values, and records of another payload."""
        if not places:
            return
        lists = checked(redis.calls([("LRANGE", name, 0, -1) for name, _ in places]))
        for (name, found), elements in zip(places, lists, strict=True):
            heads = (b'{"id":"%s"' % found.encode(), b'["%s"' % found.encode())
            for element in {e for e in elements if e.startswith(heads)}:
                redis.call("LREM", name, 0, element)

    def kept(self, redis: RedisConnection, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are still shown."""
        if not ids or not redis.call("EXISTS", self.prefix):
            return set()
        found = checked(redis.calls([("HEXISTS", self.prefix, each) for each in ids]))
        return {each for each, there in zip(ids, found, strict=True) if there}


def is_id(text: str) -> bool:
    """Whether it is the id of a transaction, and so may stand in SQL."""
    try:
        return canonical_id("id", text) == text
    except ValueError:
        return False


def record(found: bytes) -> Pending | None:
    """A record; None if it is none."""
    try:
        read = _decoder.decode(found)
        # Anyone who may write to Redis may have put it there, and the id goes into SQL.
        return read if is_id(read.id) else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def value(found: bytes) -> Any:
    """The value of an element of a `:cache:` list; None if it is none."""
    try:
        return msgspec.json.decode(found, type=tuple[str, Any])[1]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _count(reply: Any) -> int:
    if isinstance(reply, RedisRefused):
        if reply.code != "WRONGTYPE":
            raise reply
        return -1  # Put there by somebody else.
    return int(reply)
