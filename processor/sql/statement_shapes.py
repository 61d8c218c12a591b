"""A shape: what similar operations share - kind, table, columns - compiled to SQL once.

`renderer` keeps the shapes of a session. A shape has the text of its PREPARE and writes each
argument in its column's type. Its quick and plain forms mean the same (rule 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from processor.connections.sql_literals import named, quoted, table
from processor.sql.catalog import Column, Table
from processor.sql.column_types import (
    NUMBERS,
    TIMES,
    UNCOMPARED,
    WHOLE,
    Unfit,
    Writer,
    no_addition,
    no_equality,
    writer,
)
from processor.transaction.operations import Delete, Insert, Update, Upsert


class Template:
    """A statement with gaps for its arguments, and the column and type of each argument."""

    def __init__(self, start: str) -> None:
        #: The SQL around the arguments: one piece more than there are arguments.
        self.pieces = [start]
        self.columns: list[Column] = []
        self.types: list[str] = []

    def text(self, sql: str) -> None:
        """Append SQL."""
        self.pieces[-1] += sql

    def argument(self, before: str, column: Column, type_name: str) -> None:
        """Append SQL and an argument that is written as a value of `column`."""
        self.text(before)
        self.pieces.append("")
        self.columns.append(column)
        self.types.append(type_name)

    def filled(self, arguments: Sequence[str]) -> str:
        """Return the statement with these arguments."""
        return _weave(self.pieces, arguments)


class Shape:
    """A statement with arguments, as the EXECUTE of a prepared statement or in plain SQL."""

    __slots__ = ("_plain", "_writers", "name", "prepare", "prepared")

    def __init__(self, name: str, template: Template) -> None:
        self.name = name
        types = template.types
        casts = [
            f"%s::{type_name}".replace("%", "%%").replace("%%s", "%s", 1) for type_name in types
        ]
        self._plain = _weave([piece.replace("%", "%%") for piece in template.pieces], casts) + ";"
        self._writers = [_literal(c) for c in template.columns]
        parameters = [f"${n}" for n in range(1, len(types) + 1)]
        declared = f" ({', '.join(types)})" if types else ""
        self.prepare = f"PREPARE {name}{declared} AS {template.filled(parameters)};"
        self.prepared = False

    def quick(self, values: Sequence[Any]) -> str:
        """Return the EXECUTE of the prepared statement."""
        if not values:
            return f"EXECUTE {self.name};"
        written = [w(v) for w, v in zip(self._writers, values, strict=True)]
        return f"EXECUTE {self.name}({','.join(written)});"

    def plain(self, values: Sequence[Any]) -> str:
        """Return the same statement in plain SQL."""
        written = [w(v) for w, v in zip(self._writers, values, strict=True)]
        # Quoted, because a bare negative number would be cast before it is negated.
        return self._plain % tuple(f"'{a}'" if a[0] == "-" else a for a in written)


def compiled(name: str, target: Table, operation: Any) -> Shape:
    """Return the shape of an operation. Raises Unfit for columns that the table does not have."""
    return Shape(name, _BUILD[type(operation)](target, operation))


def key_of(operation: Any) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the key that operations of one shape share, and the values in argument order."""
    kind = type(operation)
    if kind is Insert:
        values = operation.values
        if operation.overriding:
            return (Insert, operation.table, 1, *values), [*values.values()]
        return (Insert, operation.table, *values), [*values.values()]
    if kind is Update:
        return _update_key(operation)
    if kind is Delete:
        where = operation.where
        nulls = _nulls(where)
        key: tuple[Any, ...] = (Delete, operation.table, *where, nulls, operation.expect is None)
        values = [v for v in where.values() if v is not None] if nulls else [*where.values()]
        if operation.expect is not None:
            values.append(operation.expect)
        return key, values
    values = operation.values
    how = (operation.update, operation.overriding)
    return (Upsert, operation.table, how, *values, 1, *operation.conflict), [*values.values()]


def _update_key(operation: Update) -> tuple[tuple[Any, ...], list[Any]]:
    assigned, added, where = operation.set, operation.add, operation.where
    nulls = _nulls(where)
    matched = where.values() if not nulls else [v for v in where.values() if v is not None]
    expect = operation.expect
    if assigned is None and added is not None:
        key = (Update, operation.table, 1, *added, 2, *where, nulls, expect is None)
        values = [*added.values(), *matched]
    else:
        assigned, added = assigned or {}, added or {}
        key = (Update, operation.table, *assigned, 1, *added, 2, *where, nulls, expect is None)
        values = [*assigned.values(), *added.values(), *matched]
    if expect is not None:
        values.append(expect)
    return key, values


def _nulls(where: dict[str, Any]) -> tuple[bool, ...]:
    """Return which conditions are null (written IS NULL); empty if none is."""
    values = where.values()
    return tuple(v is None for v in values) if None in values else ()


_COUNT = Column("expect", "bigint", 20, -1, 0)


def overriding(operation: Insert | Upsert) -> str:
    """Return the clause that permits values for columns that are GENERATED ALWAYS."""
    return " OVERRIDING SYSTEM VALUE" if operation.overriding else ""


def _insert(target: Table, operation: Insert | Upsert) -> Template:
    columns = [_column(target, name) for name in operation.values or ()]
    if not columns:
        # An entry that was written past `submit`, which refuses it.
        raise Unfit("22000", "insert has no columns")
    fixed = sorted(target.always & operation.values.keys()) if operation.values else []
    if fixed and not operation.overriding:
        raise Unfit(
            "428C9", f"column {fixed[0]} is GENERATED ALWAYS: omit it, or insert with"
            " overriding=True",
        )  # fmt: skip
    names = ", ".join(named(c.name) for c in columns)
    template = Template(
        f"INSERT INTO {table(target.name)} ({names}){overriding(operation)} VALUES ("
    )
    separator = ""
    for column in columns:
        template.argument(separator, column, column.type)
        separator = ", "
    template.text(")")
    return template


def _upsert(target: Table, operation: Upsert) -> Template:
    template = _insert(target, operation)
    conflict = [named(_column(target, name).name) for name in operation.conflict]
    rest = [n for n in operation.values if n not in operation.conflict] if operation.update else []
    if fixed := sorted(target.always.intersection(rest)):
        raise Unfit(
            "428C9", f"column {fixed[0]} is GENERATED ALWAYS: it cannot be updated, so name it in"
            " conflict, or upsert with update=False",
        )  # fmt: skip
    assignments = ", ".join(f"{named(n)} = EXCLUDED.{named(n)}" for n in rest)
    action = f"UPDATE SET {assignments}" if rest else "NOTHING"
    predicate = _predicate(target, operation)
    template.text(f" ON CONFLICT ({', '.join(conflict)}){predicate} DO {action}")
    return template


def _predicate(target: Table, operation: Upsert) -> str:
    """Return the predicate of the partial index that finds the row; none if a whole index does.

    It comes from the catalog, so that a transaction needs no SQL for it. If it implies those of
    several indexes, PostgreSQL looks for the row in all of them.
    """
    columns = frozenset(operation.conflict)
    found = target.partial.get(columns)
    return "" if found is None or columns in target.unique else f" WHERE {found}"


def _update(target: Table, operation: Update) -> Template:
    template = Template(f"UPDATE {table(target.name)} SET ")
    separator = ""
    for name in operation.set or ():
        column = _column(target, name)
        template.argument(f"{separator}{named(name)} = ", column, column.type)
        separator = ", "
    for name in operation.add or ():
        column = _column(target, name)
        template.argument(
            f"{separator}{named(name)} = {named(name)} OPERATOR(pg_catalog.+) ", *_added(column)
        )
        separator = ", "
    _where(target, operation.where, template)
    _expected(template, operation.expect)
    return template


def _delete(target: Table, operation: Delete) -> Template:
    template = Template(f"DELETE FROM {table(target.name)}")
    _where(target, operation.where, template)
    _expected(template, operation.expect)
    return template


def _where(target: Table, where: dict[str, Any], template: Template) -> None:
    word = " WHERE "
    for name, value in where.items():
        column = _column(target, name)
        if column.base in UNCOMPARED:
            raise no_equality(name)
        if value is None:
            template.text(f"{word}{named(name)} IS NULL")
        else:
            template.argument(f"{word}{named(name)} {column.equals} ", column, column.type)
        word = " AND "


def _expected(template: Template, expect: int | None) -> None:
    if expect is not None:
        template.pieces[0] = "WITH met AS (" + template.pieces[0]
        template.argument(
            " RETURNING 1) SELECT processor.expect_2((SELECT pg_catalog.count(*) FROM met), ",
            _COUNT,
            "bigint",
        )
        template.text(")")


def _added(column: Column) -> tuple[Column, str]:
    if column.base in NUMBERS:
        return column, column.type
    if column.base in TIMES:
        # `date + unknown` is ambiguous (42725), so the value is cast to interval.
        return Column(column.name, "interval", 1186, -1, 0), "interval"
    raise no_addition(column.name)


_BUILD: dict[type, Any] = {Insert: _insert, Upsert: _upsert, Update: _update, Delete: _delete}


def _column(target: Table, name: str) -> Column:
    column = target.columns.get(name)
    if column is None:
        raise Unfit("42703", f"table {target.name} has no column {name}")
    return column


def _literal(column: Column) -> Writer:
    write = writer(column.base, column.modifier, column.element)
    bare = column.base in WHOLE and column.element == 0

    def literal(value: Any) -> str:
        if value is None:
            return "NULL"
        try:
            return write(value) if bare and type(value) is int else quoted(write(value))
        except Unfit as error:
            raise Unfit(error.sqlstate, error.problem, column.name) from None

    return literal


def _weave(pieces: Sequence[str], arguments: Sequence[str]) -> str:
    woven = [pieces[0]]
    for argument, piece in zip(arguments, pieces[1:], strict=True):
        woven += (argument, piece)
    return "".join(woven)
