"""Operations as SQL text: quick (EXECUTE of a prepared shape) and plain, equal in meaning.

Values never decide about SQL: they are always literals of their column's type, and the text of a
statement comes from the registry alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from processor import registry
from processor.catalog import Catalog, Table
from processor.columntype import Unfit
from processor.entry import Entry
from processor.literal import quoted
from processor.operation import Insert, Operation, Statement
from processor.shape import Shape, compiled, key_of

_json = msgspec.json.Encoder(decimal_format="number")
_NOT_FOR_TRANSACTIONS = frozenset({"processor", "pg_catalog", "information_schema"})


class Unrenderable(Exception):
    """A transaction cannot be written for its tables; `place` is the operation's number."""

    def __init__(self, place: int, sqlstate: str, problem: str) -> None:
        super().__init__(f"operations[{place}]: {problem}")
        self.place = place
        self.sqlstate = sqlstate


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
        key, values = key_of(operation)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._compile(key, operation)
        return shape.quick(values) if quick else shape.plain(values)

    def _compile(self, key: tuple[Any, ...], operation: Operation) -> Shape:
        target = self._table(operation)
        self._number += 1
        name = f"processor_{self._number}"
        shape = compiled(name, target, operation)
        self._shapes[key] = shape
        self._unprepared.append(shape)
        return shape

    def _table(self, operation: Any) -> Table:
        if self._allowed and operation.table not in self._allowed:
            raise Unfit("42501", f"table {operation.table} is not in database.tables")
        if operation.table.partition(".")[0] in _NOT_FOR_TRANSACTIONS and "." in operation.table:
            raise Unfit("42501", f"schema of {operation.table} is not for transactions")
        found = self._catalog.find(operation.table)
        if found is None:
            raise Unfit("42P01", f"there is no table {operation.table}")
        return found


def tables(entry: Entry) -> set[str]:
    """The tables that a transaction names."""
    return {o.table for o in entry.operations if not isinstance(o, Statement)}


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
