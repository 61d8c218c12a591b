"""Folding: operations of many transactions as one set-based statement with the same effect.

A run of transactions of one shape - the same inserts and additions on the same tables - becomes one
statement for each of its operations: INSERT ... SELECT from arrays, and UPDATE ... FROM with the
additions to each row summed. This costs the server a fraction of the single statements.

DESIGN. If the folded form succeeds, the single form would have succeeded with the same rows. So a
shape is folded only if no trigger, rule, policy, check, generated column or computed index could
see a single row or an intermediate value, if no foreign key of its tables refers to another of them
that it inserts into, and if equal keys are equal texts. If the folded form fails, nothing is
concluded: the entries are applied singly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, localcontext
from typing import Any

from processor.connections.sql_literals import named, quoted, table
from processor.sql.catalog import Column, Table
from processor.sql.column_types import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT4,
    FLOAT8,
    INTERVAL,
    JSON,
    JSONB,
    NUMERIC,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    TIMETZ,
    UUID,
    VARCHAR,
    WHOLE,
    out_of_range,
    writer,
)
from processor.sql.statement_shapes import overriding
from processor.transaction.operations import Insert, Update

#: Folding fewer transactions than this does not pay.
SHORTEST_RUN = 4

#: Types whose values keep their meaning inside an array.
_FOLDABLE_TYPES = frozenset({
    *WHOLE, BOOL, BYTEA, DATE, FLOAT4, FLOAT8, INTERVAL, JSON, JSONB, NUMERIC, TEXT, TIME,
    TIMESTAMP, TIMESTAMPTZ, TIMETZ, UUID, VARCHAR,
})  # fmt: skip
#: Sums of decimals are exact, or the run is not folded.
_EXACT = Context(prec=1000, traps=[Inexact, InvalidOperation, Overflow])
_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def _unnested(count: int) -> str:
    """Return the rows of so many arrays; unnest of one array could be another user's (rule 92)."""
    return f"ROWS FROM ({', '.join(f'pg_catalog.unnest(${n})' for n in range(1, count + 1))})"


class NotFolded(Exception):
    """These values cannot be folded; their transactions are rendered singly."""


class FoldedInsert:
    """The same insert of every transaction of a run, as one INSERT."""

    def __init__(
        self, name: str, target: Table, columns: Sequence[Column], overriding: str
    ) -> None:
        self.name = name
        types = ", ".join(f"{c.type}[]" for c in columns)
        names = ", ".join(named(c.name) for c in columns)
        self.prepare = (
            f"PREPARE {name} ({types}) AS INSERT INTO {table(target.name)} ({names})"
            f"{overriding} SELECT * FROM {_unnested(len(columns))};"
        )
        self.prepared = False
        self._arrays = [_array(c) for c in columns]

    def write(self, rows: Sequence[Sequence[Any]]) -> str:
        """Return the EXECUTE for the values of each transaction. Raises Unfit and NotFolded."""
        columns = zip(*rows, strict=True)
        written = [array(values) for array, values in zip(self._arrays, columns, strict=True)]
        return f"EXECUTE {self.name}({','.join(written)});"


class FoldedAdd:
    """The same addition of every transaction of a run, as one UPDATE with the sum for each row."""

    def __init__(
        self, name: str, target: Table, added: Sequence[Column], keys: Sequence[Column],
        expect: int | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.prepared = False
        self._added = added
        self._keys = keys
        self._expect = expect is not None
        self._checks = [_sum_check(c) for c in added]
        self._arrays = [_array(c) for c in keys]
        self.prepare = self._prepare(target)

    def _prepare(self, target: Table) -> str:
        types = [f"{c.type}[]" for c in self._keys]
        types += ["numeric[]" if c.base == NUMERIC else "bigint[]" for c in self._added]
        names = ", ".join([f"k{n}" for n in range(len(self._keys))]
                          + [f"s{n}" for n in range(len(self._added))])  # fmt: skip
        sums = ", ".join(
            f"{named(c.name)} = t.{named(c.name)} OPERATOR(pg_catalog.+) d.s{n}"
            for n, c in enumerate(self._added)
        )
        where = " AND ".join(
            f"t.{named(c.name)} {c.equals} d.k{n}" for n, c in enumerate(self._keys)
        )
        update = (
            f"UPDATE {table(target.name)} AS t SET {sums}"
            f" FROM {_unnested(len(types))} AS d ({names}) WHERE {where}"
        )
        if not self._expect:
            return f"PREPARE {self.name} ({', '.join(types)}) AS {update};"
        return (
            f"PREPARE {self.name} ({', '.join(types)}, bigint) AS"
            f" WITH met AS ({update} RETURNING 1)"
            f" SELECT processor.expect_2((SELECT pg_catalog.count(*) FROM met), ${len(types) + 1});"
        )

    def write(self, rows: Sequence[Sequence[Any]]) -> str:
        """Return the EXECUTE for the values of each transaction. Raises Unfit and NotFolded."""
        try:
            with localcontext(_EXACT):
                return self._write(rows)
        except (TypeError, ArithmeticError):
            # Values that cannot be added or compared exactly: each is judged singly.
            raise NotFolded from None

    def _check_keys(self, rows: Sequence[Sequence[Any]]) -> None:
        """Check that keys are equal in Python if and only if they are equal in PostgreSQL.

        In a dict, True, 1 and 1.0 are one key, and 7 and "7" are two keys with the same text.
        """
        for position, column in enumerate(self._keys, start=len(self._added)):
            kind = int if column.base in WHOLE else str
            if any(type(row[position]) is not kind for row in rows):
                raise NotFolded
        if self._expect and any(row[-1] != 1 for row in rows):
            raise NotFolded

    def _write(self, rows: Sequence[Sequence[Any]]) -> str:
        width, depth = len(self._added), len(self._keys)
        self._check_keys(rows)
        totals: dict[tuple[Any, ...], list[Any]] = {}
        end = width + depth
        for row in rows:
            key = tuple(row[width:end])
            total = totals.get(key)
            if total is None:
                totals[key] = list(row[:width])
            else:
                for n in range(width):
                    total[n] += row[n]
        for n, check in enumerate(self._checks):
            check([row[n] for row in rows], [total[n] for total in totals.values()])
        ordered = sorted(totals) if depth == 1 else list(totals)
        written = [array([key[n] for key in ordered]) for n, array in enumerate(self._arrays)]
        written += [
            "'{" + ",".join(str(totals[key][n]) for key in ordered) + "}'" for n in range(width)
        ]
        if self._expect:
            written.append(str(len(ordered)))
        return f"EXECUTE {self.name}({','.join(written)});"


Fold = FoldedInsert | FoldedAdd


def folds(
    operations: Sequence[Any], targets: Sequence[Table], name: str
) -> list[FoldedInsert | FoldedAdd] | None:
    """Return the folds of a shape, one for each operation; None if it must not be folded."""
    if not _independent(operations, targets):
        return None
    made: list[Fold] = []
    for number, (operation, target) in enumerate(zip(operations, targets, strict=True)):
        fold = _fold(operation, target, f"{name}_{number}")
        if fold is None:
            return None
        made.append(fold)
    return made


def _independent(operations: Sequence[Any], targets: Sequence[Table]) -> bool:
    """Return whether the transactions of a run may be executed operation by operation."""
    if not all(target.unobserved for target in targets):
        return False
    if len({target.oid for target in targets}) < len(targets):
        return False
    inserted = {t.oid for o, t in zip(operations, targets, strict=True) if isinstance(o, Insert)}
    if any(target.references & inserted for target in targets):
        return False
    return sum(t.has_sequence for t in targets if t.oid in inserted) < 2


def _fold(operation: Any, target: Table, name: str) -> Fold | None:
    if isinstance(operation, Insert) and operation.values is not None:
        columns = [target.columns[n] for n in operation.values]
        if not all(map(_foldable, columns)):
            return None
        return FoldedInsert(name, target, columns, overriding(operation))
    if isinstance(operation, Update) and operation.add and not operation.set:
        return _folded_add(operation, target, name)
    return None


def _folded_add(operation: Update, target: Table, name: str) -> FoldedAdd | None:
    added = [target.columns[n] for n in operation.add or ()]
    keys = [target.columns[n] for n in operation.where]
    names = {c.name for c in added}
    if names & target.constrained or names & operation.where.keys():
        return None
    if None in operation.where.values():
        return None
    if not all(_foldable(c) and c.base in (*WHOLE, NUMERIC) for c in added):
        return None
    if not all(_foldable(c) and _comparable(c) for c in keys):
        return None
    if operation.expect is not None and (
        operation.expect != 1 or frozenset(operation.where) not in target.unique
    ):
        return None
    return FoldedAdd(name, target, added, keys, operation.expect)


def _foldable(column: Column) -> bool:
    return column.base in _FOLDABLE_TYPES and not column.domain and column.element == 0


def _comparable(column: Column) -> bool:
    """Return whether values are equal in PostgreSQL if and only if their texts are equal."""
    return column.base in (*WHOLE, UUID) or (
        column.base in (TEXT, VARCHAR) and column.deterministic
    )


def _sum_check(column: Column) -> Any:
    """Return a check of the values added to a column and of their sums. It raises NotFolded.

    An intermediate value may leave the column's range although the sum does not. Values of one sign
    cannot do that. Values of both signs are not folded, unless the type has no range.
    """
    unbounded = column.base == NUMERIC and column.modifier < 4
    limit = WHOLE.get(column.base)

    def check(values: Sequence[Any], sums: Sequence[Any]) -> None:
        if limit is not None:
            if set(map(type, values)) != {int}:
                raise NotFolded
            if min(values) < -limit or max(values) >= limit:
                raise NotFolded
            if any(not -(1 << 62) < total < 1 << 62 for total in sums):
                raise NotFolded
        elif not set(map(type, values)) <= {int, Decimal}:
            raise NotFolded
        elif column.modifier >= 4:
            for value in values:
                write(value)
        if not unbounded and min(values) < 0 < max(values):
            raise NotFolded

    write = writer(column.base, column.modifier, 0)
    return check


def _array(column: Column) -> Any:
    """Return a function from a column's values to an array literal; raises Unfit or NotFolded."""
    if column.base in WHOLE:
        return _whole(WHOLE[column.base], writer(column.base, column.modifier, 0))
    write = writer(column.base, column.modifier, 0)
    if column.base == UUID:
        return _uuids

    def array(values: Sequence[Any]) -> str:
        items = [
            "NULL" if v is None
            else '"' + write(v).replace("\\", "\\\\").replace('"', '\\"') + '"'
            for v in values
        ]  # fmt: skip
        return quoted("{" + ",".join(items) + "}")

    return array


def _whole(limit: int, write: Any) -> Any:
    def array(values: Sequence[Any]) -> str:
        if set(map(type, values)) == {int}:
            if -limit <= min(values) and max(values) < limit:
                return "'{" + ",".join(map(str, values)) + "}'"
            raise out_of_range()
        raise NotFolded

    return array


def _uuids(values: Sequence[Any]) -> str:
    if set(map(type, values)) != {str} or not all(map(_CANONICAL_UUID, values)):
        raise NotFolded
    return "'{" + ",".join(values) + "}'"
