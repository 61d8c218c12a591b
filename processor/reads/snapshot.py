"""What a read asks a server: rows, and which pending transactions are in its ledger (rule 32).

Both in one statement, which has one snapshot. In two statements a transaction that is replayed in
between would be missing, or doubled. A read of one row by its key is prepared once on a session;
a read of more rows is written out each time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor.connections.sql_literals import named, quoted, table
from processor.reads.merge import MergedRow
from processor.reads.relations import Relation
from processor.reads.row_values import writer_of
from processor.transaction.operations import Delete, Insert, Operation, Update, Upsert
from processor.transaction.write_set import row_digest, touch

Where = Mapping[str, Any]

_LEDGER = "SELECT l.id::text FROM processor.ledger l WHERE l.id = ANY ({})"


@dataclass(slots=True)
class Snapshot:
    """What the server showed at one moment: `applied` ids in its ledger, rows by table."""

    applied: set[str]
    rows: dict[str, list[MergedRow]] = field(default_factory=dict)


class Prepared:
    """The two forms of a read of one row by its key: the row alone, and with the ledger."""

    def __init__(self, number: int, relation: Relation, where: Where) -> None:
        columns = [relation.columns[name] for name, value in where.items() if value is not None]
        types = [column.type for column in columns]
        self._relation = relation
        self._width = len(relation.names)
        self._plain, self._merged = f"processor_p{number}", f"processor_m{number}"
        source = f"FROM {table(relation.name)} x"
        declared = f" ({', '.join(types)})" if types else ""
        plain, merged = _conditions(relation, where, 1), _conditions(relation, where, 2)
        self.deallocate = f"DEALLOCATE {self._plain};DEALLOCATE {self._merged};"
        self.prepare = (
            f"PREPARE {self._plain}{declared} AS SELECT x.* {source}{plain};"
            f"PREPARE {self._merged} ({', '.join(['uuid[]', *types])}) AS"
            f" SELECT ARRAY({_LEDGER.format('$1')}), t.* FROM (SELECT 1) AS one"
            f" LEFT JOIN (SELECT true AS there, x.* {source}{merged}) t ON true;"
        )

    def plain(self, where: Where) -> str:
        """Return SQL that reads the rows alone."""
        literals = _literals(self._relation, where)
        return f"EXECUTE {self._plain}({','.join(literals)})" if literals else (
            f"EXECUTE {self._plain}"
        )  # fmt: skip

    def merged(self, where: Where, ids: Iterable[str]) -> str:
        """Return SQL that reads the rows and which of the ids are in the ledger."""
        literals = [f"'{{{','.join(ids)}}}'", *_literals(self._relation, where)]
        return f"EXECUTE {self._merged}({','.join(literals)})"

    def rows(self, answer: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """Return the rows in the answer to `plain`. Raises Changed."""
        return rows(self._relation, answer)

    def read(self, answer: Sequence[tuple[Any, ...]]) -> Snapshot:
        """Return what the answer to `merged` shows. Raises Changed."""
        if len(answer[0]) != self._width + 2:
            raise Changed
        names = self._relation.names
        found = [MergedRow(dict(zip(names, row[2:], strict=True))) for row in answer if row[1]]
        return Snapshot(set(answer[0][0]), {self._relation.name: found})


class Changed(Exception):
    """The table has other columns than when it was looked up."""


def plain(relation: Relation, where: Where) -> str:
    """Return SQL that reads rows by other columns than the key: its plan depends on the values."""
    condition = f" WHERE {_conjunction(relation, where)}" if where else ""
    return f"SELECT x.* FROM {table(relation.name)} x{condition}"


def rows(relation: Relation, answer: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Return the rows in the answer to `plain`. Raises Changed."""
    if answer and len(answer[0]) != len(relation.names):
        raise Changed
    return [dict(zip(relation.names, row, strict=True)) for row in answer]


def whole(
    wanted: Sequence[tuple[Relation, Sequence[Where] | None]], where: Where, ids: Iterable[str]
) -> str:
    """Return SQL that reads rows of several tables, and which of the ids are in the ledger.

    A row is read if it meets any of its table's conditions (None: every row). `where` is the
    condition of the read, on the first table; the server returns whether its rows meet it.
    """
    nulls = ", ".join(
        f"NULL::{relation.columns[name].type}" for relation, _ in wanted for name in relation.names
    )
    ledger = _LEDGER.format(f"'{{{','.join(ids)}}}'::uuid[]")
    parts = [f"SELECT 0, ARRAY({ledger}), NULL::text, NULL::bool, {nulls}"]
    for index, (relation, conditions) in enumerate(wanted):
        meets = f"({_conjunction(relation, where)})" if index == 0 and where else "NULL::bool"
        columns = ", ".join(
            f"x.{named(name)}" if each is relation else f"NULL::{each.columns[name].type}"
            for each, _ in wanted for name in each.names
        )  # fmt: skip
        select = (
            f"SELECT {index + 1}, NULL::text[], x.tableoid::bigint::text || x.ctid::text, {meets},"
            f" {columns} FROM {table(relation.name)} x"
        )
        if conditions is None:
            parts.append(select)
        else:
            parts += [f"{select} WHERE {one}" for one in _disjunction(relation, conditions)]
    return " UNION ALL ".join(parts)


def read(wanted: Sequence[Relation], answer: Sequence[tuple[Any, ...]]) -> Snapshot:
    """Return what the answer to `whole` shows; a row that meets two conditions comes twice."""
    found = Snapshot(set())
    starts, start = [], 4
    for relation in wanted:
        starts.append(start)
        start += len(relation.names)
        found.rows[relation.name] = []
    seen: set[tuple[int, str]] = set()
    for row in answer:
        number, address = row[0], row[2]
        if number == 0:
            found.applied.update(row[1])
        if number == 0 or (number, address) in seen:
            continue
        seen.add((number, address))
        relation, start = wanted[number - 1], starts[number - 1]
        values = dict(zip(relation.names, row[start:], strict=False))
        found.rows[relation.name].append(MergedRow(values, bool(row[3])))
    return found


def conditions(
    relation: Relation, operation: Operation, digests: Collection[str] | None
) -> Iterator[Where]:
    """Yield conditions for the rows that an operation may touch.

    With `digests`, only for the rows that have one of them.
    """
    keys = relation.keys
    if digests is not None:
        for digest, key_values in touch(keys, operation).rows.items():
            if digest in digests:
                yield from (dict(zip(keys, values, strict=True)) for values in key_values)
        return
    if isinstance(operation, Insert):
        for row in operation.rows or [operation.values or {}]:
            yield from _key(keys, row)
    elif isinstance(operation, Upsert):
        yield {column: operation.values[column] for column in operation.conflict}
        yield from _key(keys, operation.values)
    elif isinstance(operation, Update | Delete):
        yield operation.where
        given = (operation.set or {}) if isinstance(operation, Update) else {}
        moved = {column: given[column] for column in keys if column in given}
        if moved:
            yield moved  # The row that may have the new key already.


def _key(keys: Sequence[str], row: Where) -> Iterator[Where]:
    if all(row.get(column) is not None for column in keys):
        yield {column: row[column] for column in keys}


def digest_of(relation: Relation, where: Where) -> str | None:
    """Return the digest of the one row that a read is about; None if it is about more rows."""
    return row_digest(tuple(where.get(column) for column in relation.keys))


def _conditions(relation: Relation, where: Where, start: int) -> str:
    parts, number = [], start
    for name, value in where.items():
        if value is None:
            parts.append(f"x.{named(name)} IS NULL")
        else:
            parts.append(f"x.{named(name)} {relation.columns[name].equals} ${number}")
            number += 1
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def _literals(relation: Relation, where: Where) -> list[str]:
    return [quoted(_text(relation, n, v)) for n, v in where.items() if v is not None]


def _text(relation: Relation, name: str, value: Any) -> str:
    column = relation.columns[name]
    return writer_of(column.base, column.modifier, column.element)(value)


def _conjunction(relation: Relation, where: Where) -> str:
    return " AND ".join(
        f"x.{named(n)} IS NULL" if v is None
        else f"x.{named(n)} {relation.columns[n].equals} {quoted(_text(relation, n, v))}"
             f"::{relation.columns[n].type}"
        for n, v in where.items()
    )  # fmt: skip


def _disjunction(relation: Relation, wheres: Iterable[Where]) -> Iterator[str]:
    """Join conditions on the same columns into one each, so that an index can serve it."""
    joined: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[tuple[str, ...], Where]] = {}
    for where in wheres:
        given = tuple(sorted(n for n, v in where.items() if v is not None))
        nulls = tuple(sorted(n for n, v in where.items() if v is None))
        texts = tuple(_text(relation, n, where[n]) for n in given)
        joined.setdefault((given, nulls), {})[texts] = where
    for (given, nulls), found in joined.items():
        if not given or any(relation.columns[name].element for name in given):
            yield from (_conjunction(relation, where) for where in found.values())
            continue
        arrays = [
            f"{quoted(_array(texts))}::{relation.columns[name].type}[]"
            for name, texts in zip(given, zip(*found, strict=True), strict=True)
        ]
        names = [f"x.{named(name)}" for name in given]
        equals = [relation.columns[name].equals for name in given]
        pairs = [f"{n} {e} u.c{i}" for i, (n, e) in enumerate(zip(names, equals, strict=True))]
        aliases = ", ".join(f"c{i}" for i in range(len(given)))
        some = (
            f"{names[0]} {equals[0]} ANY ({arrays[0]})" if len(given) == 1
            else f"EXISTS (SELECT FROM unnest({', '.join(arrays)}) AS u ({aliases})"
                 f" WHERE {' AND '.join(pairs)})"
        )  # fmt: skip
        yield " AND ".join([some, *(f"x.{named(name)} IS NULL" for name in nulls)])


def _array(texts: Iterable[str]) -> str:
    quoted_each = ('"' + t.replace("\\", "\\\\").replace('"', '\\"') + '"' for t in texts)
    return "{" + ",".join(quoted_each) + "}"
