"""Operations as SQL text: quick (EXECUTE of a prepared shape) and plain, equal in meaning.

A *shape* is what operations have in common: kind, table, columns. It is compiled once per session
from the catalog into the text of its PREPARE, and a function for each argument. Values never decide
about SQL: they are always literals of their column's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from processor import registry
from processor.catalog import Catalog, Column, Table
from processor.columntype import NUMBERS, TIMES, WHOLE, Unfit, Writer, writer
from processor.literal import named, quoted, table
from processor.entry import Entry
from processor.operation import Delete, Insert, Operation, Statement, Update, Upsert

_json = msgspec.json.Encoder(decimal_format="number")


class Unrenderable(Exception):
    """A transaction cannot be written for its tables; `place` is the operation's number."""

    def __init__(self, place: int, sqlstate: str, problem: str) -> None:
        super().__init__(f"operations[{place}]: {problem}")
        self.place = place
        self.sqlstate = sqlstate


class Shape:
    """One kind of statement: its prepared name and text, and how each argument is written."""

    __slots__ = ("_columns", "_plain", "_types", "_writers", "name", "prepare", "prepared")

    def __init__(self, name: str, template: Sequence[str], columns: Sequence[Column],
                 types: Sequence[str]) -> None:  # fmt: skip
        """`template` has the SQL between the arguments, one piece more than there are arguments."""
        self.name = name
        self._columns = columns
        self._types = types
        self._plain = template
        self._writers = [_literal(c, t) for c, t in zip(columns, types, strict=True)]
        places = [f"${n}" for n in range(1, len(types) + 1)]
        self.prepare = f"PREPARE {name} ({', '.join(types)}) AS {_weave(template, places)};"
        if not types:
            self.prepare = f"PREPARE {name} AS {template[0]};"
        self.prepared = False

    def quick(self, values: Sequence[Any]) -> str:
        """An EXECUTE of the prepared shape."""
        if not values:
            return f"EXECUTE {self.name};"
        written = [w(v) for w, v in zip(self._writers, values, strict=True)]
        return f"EXECUTE {self.name}({','.join(written)});"

    def plain(self, values: Sequence[Any]) -> str:
        """The same statement written out."""
        written = [
            f"{quoted_literal(w(v))}::{t}"
            for w, v, t in zip(self._writers, values, self._types, strict=True)
        ]
        return _weave(self._plain, written) + ";"


class Renderer:
    """The shapes of one session."""

    def __init__(self, catalog: Catalog, allowed: Sequence[str]) -> None:
        self._catalog = catalog
        self._allowed = frozenset(allowed)
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._unprepared: list[Shape] = []
        self._number = 0

    def forget(self) -> None:
        """Compile all shapes anew: the catalog was forgotten. Old names are never used again."""
        self._shapes.clear()
        self._unprepared.clear()

    def unprepare(self) -> None:
        """None of the shapes is prepared any more."""
        self._unprepared = list(self._shapes.values())
        for shape in self._unprepared:
            shape.prepared = False

    def prepare(self) -> str:
        """The PREPAREs of shapes that were met since the last call; marks them prepared."""
        text = "".join(shape.prepare for shape in self._unprepared)
        for shape in self._unprepared:
            shape.prepared = True
        self._unprepared = []
        return text

    def quick(self, entry: Entry) -> str:
        """A transaction as EXECUTEs. Raises Unrenderable."""
        return self._write(entry, quick=True)

    def plain(self, entry: Entry) -> str:
        """A transaction written out. Raises Unrenderable."""
        return self._write(entry, quick=False)

    def _write(self, entry: Entry, *, quick: bool) -> str:
        parts = []
        for place, operation in enumerate(entry.operations):
            try:
                parts.append(self._operation(operation, quick))
            except Unfit as error:
                raise Unrenderable(place, error.sqlstate, str(error)) from None
        text = "".join(parts)
        if entry.timeout is not None:
            milliseconds = max(1, int(entry.timeout * 1000))
            return (
                "SELECT set_config('processor.limit', current_setting('statement_timeout'), true);"
                f"SET LOCAL statement_timeout = {milliseconds};{text}"
                "SELECT set_config('statement_timeout', current_setting('processor.limit'), true);"
            )
        return text

    def _operation(self, operation: Operation, quick: bool) -> str:
        if isinstance(operation, Statement):
            return _statement(operation)
        if isinstance(operation, Insert) and operation.rows is not None:
            return "".join(self._row(Insert(operation.table, row), quick) for row in operation.rows)
        return self._row(operation, quick)

    def _row(self, operation: Operation, quick: bool) -> str:
        key, values = _shape_key(operation)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._compile(key, operation)
        return shape.quick(values) if quick else shape.plain(values)

    def _compile(self, key: tuple[Any, ...], operation: Operation) -> Shape:
        target = self._table(operation)
        self._number += 1
        name = f"processor_{self._number}"
        template, columns, types = _BUILD[type(operation)](target, operation)
        shape = Shape(name, template, columns, types)
        self._shapes[key] = shape
        self._unprepared.append(shape)
        return shape

    def _table(self, operation: Any) -> Table:
        if self._allowed and operation.table not in self._allowed:
            raise Unfit("42501", f"table {operation.table} is not in database.tables")
        if operation.table.split(".")[0] in ("processor", "pg_catalog", "information_schema") and (
            "." in operation.table
        ):
            raise Unfit("42501", f"schema of {operation.table} is not for transactions")
        found = self._catalog.find(operation.table)
        if found is None:
            raise Unfit("42P01", f"there is no table {operation.table}")
        return found


def tables(entry: Entry) -> set[str]:
    """The tables that a transaction names."""
    return {o.table for o in entry.operations if not isinstance(o, Statement)}


def _shape_key(operation: Any) -> tuple[tuple[Any, ...], list[Any]]:
    kind = type(operation)
    if kind is Insert:
        values = operation.values
        return (kind, operation.table, *values), list(values.values())
    if kind is Update:
        given, added, where = operation.set or {}, operation.add or {}, operation.where
        nulls = tuple(v is None for v in where.values())
        key = (kind, operation.table, *given, 1, *added, 2, *where, nulls, operation.expect is None)
        values = [*given.values(), *added.values(), *(v for v in where.values() if v is not None)]
    elif kind is Delete:
        where = operation.where
        nulls = tuple(v is None for v in where.values())
        key = (kind, operation.table, *where, nulls, operation.expect is None)
        values = [v for v in where.values() if v is not None]
    else:
        values = operation.values
        return (kind, operation.table, *values, 1, *operation.conflict), list(values.values())
    if operation.expect is not None:
        values.append(operation.expect)
    return key, values


_Built = tuple[list[str], list[Column], list[str]]
_COUNT = Column("expect", "bigint", 20, -1, 0)


def _insert(target: Table, operation: Insert) -> _Built:
    columns = [_column(target, name) for name in operation.values or ()]
    names = ", ".join(named(c.name) for c in columns)
    pieces = [f"INSERT INTO {table(target.name)} ({names}) VALUES ("]
    pieces += [", "] * (len(columns) - 1) + [")"]
    return pieces, columns, [c.type for c in columns]


def _upsert(target: Table, operation: Upsert) -> _Built:
    pieces, columns, types = _insert(target, Insert(operation.table, operation.values))
    taken = [named(_column(target, name).name) for name in operation.conflict]
    rest = [named(n) for n in operation.values if n not in operation.conflict]
    action = ", ".join(f"{n} = EXCLUDED.{n}" for n in rest)
    pieces[-1] += f" ON CONFLICT ({', '.join(taken)}) DO " + (
        f"UPDATE SET {action}" if rest else "NOTHING"
    )
    return pieces, columns, types


def _update(target: Table, operation: Update) -> _Built:
    pieces, columns, types = [f"UPDATE {table(target.name)} SET "], list[Column](), list[str]()

    def argument(before: str, column: Column, type_name: str) -> None:
        pieces[-1] += before
        pieces.append("")
        columns.append(column)
        types.append(type_name)

    separator = ""
    for name in operation.set or ():
        column = _column(target, name)
        argument(f"{separator}{named(name)} = ", column, column.type)
        separator = ", "
    for name in operation.add or ():
        column = _column(target, name)
        argument(f"{separator}{named(name)} = {named(name)} + ", *_added(column))
        separator = ", "
    _where(target, operation.where, argument, pieces)
    return _expected(pieces, columns, types, operation.expect)


def _delete(target: Table, operation: Delete) -> _Built:
    pieces, columns, types = [f"DELETE FROM {table(target.name)}"], list[Column](), list[str]()

    def argument(before: str, column: Column, type_name: str) -> None:
        pieces[-1] += before
        pieces.append("")
        columns.append(column)
        types.append(type_name)

    _where(target, operation.where, argument, pieces)
    return _expected(pieces, columns, types, operation.expect)


def _where(target: Table, where: dict[str, Any], argument: Any, pieces: list[str]) -> None:
    word = " WHERE "
    for name, value in where.items():
        column = _column(target, name)
        if value is None:
            pieces[-1] += f"{word}{named(name)} IS NULL"
        else:
            argument(f"{word}{named(name)} = ", column, column.type)
        word = " AND "


def _expected(
    pieces: list[str], columns: list[Column], types: list[str], expect: int | None
) -> _Built:
    if expect is not None:
        pieces[0] = "WITH met AS (" + pieces[0]
        pieces[-1] += " RETURNING 1) SELECT processor.expect((SELECT count(*) FROM met), "
        pieces.append(")")
        columns.append(_COUNT)
        types.append("bigint")
    return pieces, columns, types


def _added(column: Column) -> tuple[Column, str]:
    if column.base in NUMBERS:
        return column, column.type
    if column.base in TIMES:
        # date + unknown is ambiguous (42725): what is added to a time is an interval.
        return Column(column.name, "interval", 1186, -1, 0), "interval"
    raise Unfit("42804", f"column {column.name} is neither a number nor a time to add to")


_BUILD: dict[type, Any] = {Insert: _insert, Upsert: _upsert, Update: _update, Delete: _delete}


def _column(target: Table, name: str) -> Column:
    column = target.columns.get(name)
    if column is None:
        raise Unfit("42703", f"table {target.name} has no column {name}")
    return column


def _literal(column: Column, type_name: str) -> Writer:
    write = writer(column.base, column.modifier, column.element)
    bare = column.base in WHOLE and column.element == 0

    def literal(value: Any) -> str:
        if value is None:
            return "NULL"
        try:
            return write(value) if bare and type(value) is int else quoted(write(value))
        except Unfit as error:
            raise Unfit(error.sqlstate, f"column {column.name}: {error}") from None

    return literal


def quoted_literal(text: str) -> str:
    """A written argument fit for a cast: bare numbers in quotes, so that a minus sign binds."""
    return text if text == "NULL" or text.startswith("'") else f"'{text}'"


def _weave(pieces: Sequence[str], arguments: Sequence[str]) -> str:
    woven = [pieces[0]]
    for argument, piece in zip(arguments, pieces[1:], strict=True):
        woven += (argument, piece)
    return "".join(woven)


def _statement(operation: Statement) -> str:
    found = registry.find(operation.name)
    if found is None:
        raise Unfit("42883", f"there is no registered statement {operation.name}")
    missing = set(found.names) - operation.params.keys()
    extra = operation.params.keys() - set(found.names)
    if missing or extra:
        raise Unfit(
            "42P02", f"statement {operation.name}: parameters "
            + ", ".join([*(f"{n} missing" for n in sorted(missing)),
                         *(f"{n} unknown" for n in sorted(extra))]),
        )  # fmt: skip
    # A comment at the end of the text must not swallow what follows it (rule 12).
    return (
        found.fill({n: _parameter(v) for n, v in operation.params.items()}).rstrip("; \n") + "\n;"
    )


def _parameter(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal)):
        return f"({value})" if value < 0 else str(value)
    if isinstance(value, str):
        return quoted(value)
    return quoted(_json.encode(value).decode())


__all__ = ["Renderer", "Shape", "Unrenderable", "tables"]
