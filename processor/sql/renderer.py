"""Transactions as SQL text: quick (EXECUTE of what is prepared) and plain, equal in meaning.

Values never decide about SQL: they are always literals of their column's type, and the text of a
statement comes from the registry alone. `Renderer.batch` writes many transactions at once and folds
runs of equal shape (`fold`); `Renderer.plain` writes one out, for the run that pronounces poison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

import msgspec

from processor.connections.sql_literals import quoted
from processor.sql.catalog import Catalog, Refused, Table
from processor.sql.column_types import Unfit
from processor.sql.folding import LEAST, Fold, NotFolded, folds
from processor.sql.statement_shapes import Shape, compiled, key_of
from processor.transaction import statements
from processor.transaction.entry import Entry
from processor.transaction.operations import Insert, Operation, Statement

_json = msgspec.json.Encoder(decimal_format="number")
#: What statement_timeout holds, milliseconds: 24 days.
_LONGEST = 2**31 - 1
_NOT_FOR_TRANSACTIONS = frozenset({"processor", "pg_catalog", "information_schema"})


#: What a value that nobody thought of may raise: it must be one entry's end, not the lane's.
UNFORESEEN = (ValueError, TypeError, ArithmeticError, RecursionError)


class Unrenderable(Exception):
    """A transaction cannot be written for its tables; `place` is the operation's number."""

    def __init__(self, place: int, sqlstate: str, problem: str) -> None:
        super().__init__(f"operations[{place}]: {problem}")
        self.place = place
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How transactions of one make are written: singly by shapes, or folded."""

    shapes: list[Shape]
    folds: list[Fold] | None


#: A transaction taken apart: its plan (None if it has statements or rows) and its values.
Taken = tuple[Entry, Plan | None, list[list[Any]]]


class Renderer:
    """What is compiled and prepared on one session."""

    def __init__(self, catalog: Catalog, allowed: Sequence[str], *, prepares: bool) -> None:
        self._catalog = catalog
        self._allowed = frozenset(allowed)
        self._prepares = prepares
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._wanted: list[Shape | Fold] = []
        self._prepared: list[Shape | Fold] = []
        self._number = 0
        #: Grows whenever text that was written before may no longer be sent.
        self.version = 0

    @property
    def size(self) -> int:
        """How many shapes and plans are kept."""
        return len(self._shapes) + len(self._plans)

    def forget(self) -> None:
        """Compile everything anew: the catalog was forgotten. Old names are never used again."""
        self.version += 1
        self._shapes.clear()
        self._plans.clear()
        self._wanted.clear()

    def unprepare(self) -> None:
        """Nothing is prepared any more."""
        self.version += 1
        for statement in self._prepared:
            statement.prepared = False
        self._prepared.clear()

    def prepare(self) -> str:
        """The PREPAREs of what was written since the last call and is not prepared; marks it so."""
        wanted = [s for s in dict.fromkeys(self._wanted) if not s.prepared]
        self._wanted.clear()
        for statement in wanted:
            statement.prepared = True
        self._prepared += wanted
        return "".join(statement.prepare for statement in wanted)

    def take(self, entry: Entry) -> Taken:
        """Take a transaction apart. Raises Unrenderable for names that do not exist."""
        if not _is_simple(entry):
            return entry, None, []
        pairs = [key_of(operation) for operation in entry.operations]
        whole = tuple(key for key, _ in pairs)
        plan = self._plans.get(whole) or self._plan(whole, entry)
        return entry, plan, [values for _, values in pairs]

    def _plan(self, whole: tuple[Any, ...], entry: Entry) -> Plan:
        shapes, targets = [], []
        for place, (key, operation) in enumerate(zip(whole, entry.operations, strict=True)):
            with _at(place):
                targets.append(self._table(operation))
                shapes.append(self._shape(key, operation, targets[-1]))
        self._number += 1
        folded = folds(entry.operations, targets, f"processor_f{self._number}")
        plan = self._plans[whole] = Plan(shapes, folded if self._prepares else None)
        return plan

    def batch(self, taken: Sequence[Taken]) -> tuple[str, dict[str, Unrenderable]]:
        """Transactions written in order, and those that cannot be, by id."""
        parts: list[str] = []
        unfit: dict[str, Unrenderable] = {}
        for plan, run in groupby(taken, key=_plan_of):
            some = list(run)
            folded = self._fold(plan, some)
            if folded is not None:
                parts += folded
                continue
            for one in some:
                try:
                    parts.append(self._single(one))
                except Unrenderable as error:
                    unfit[one[0].id] = error
                except UNFORESEEN as error:
                    problem = f"cannot be written: {type(error).__name__}"
                    unfit[one[0].id] = Unrenderable(0, "22000", problem)
        return "".join(parts), unfit

    def _fold(self, plan: Plan | None, run: Sequence[Taken]) -> list[str] | None:
        if plan is None or plan.folds is None or len(run) < LEAST:
            return None
        try:
            texts = [
                fold.write([values[place] for _, _, values in run])
                for place, fold in enumerate(plan.folds)
            ]
        except (Unfit, NotFolded, *UNFORESEEN):
            return None
        self._wanted += plan.folds
        return texts

    def _single(self, taken: Taken) -> str:
        entry, plan, values = taken
        if plan is None or not self._prepares:
            return self.plain(entry)
        parts = []
        for place, shape in enumerate(plan.shapes):
            with _at(place):
                parts.append(shape.quick(values[place]))
        self._wanted += plan.shapes
        return "".join(parts)

    def written_out(self, taken: Taken) -> str:
        """A transaction written out whose values were found to fit."""
        entry, plan, values = taken
        if plan is None:
            return self.plain(entry)
        return "".join([shape.plain(v) for shape, v in zip(plan.shapes, values, strict=True)])

    def plain(self, entry: Entry) -> str:
        """A transaction written out. Raises Unrenderable."""
        parts: list[str] = []
        for place, operation in enumerate(entry.operations):
            with _at(place):
                parts += self._operation(operation)
        text = "".join(parts)
        return text if entry.timeout is None else _limited(text, entry.timeout)

    def _operation(self, operation: Operation) -> Iterator[str]:
        if isinstance(operation, Statement):
            yield _statement(operation)
        elif isinstance(operation, Insert) and operation.rows is not None:
            for row in operation.rows:
                yield from self._operation(Insert(operation.table, row))
        else:
            key, values = key_of(operation)
            yield self._shape(key, operation, self._table(operation)).plain(values)

    def _shape(self, key: tuple[Any, ...], operation: Any, target: Table) -> Shape:
        shape = self._shapes.get(key)
        if shape is None:
            self._number += 1
            shape = self._shapes[key] = compiled(f"processor_{self._number}", target, operation)
        return shape

    def _table(self, operation: Any) -> Table:
        if self._allowed and operation.table not in self._allowed:
            raise Unfit("42501", f"table {operation.table} is not in database.tables")
        if operation.table.partition(".")[0] in _NOT_FOR_TRANSACTIONS and "." in operation.table:
            raise Unfit("42501", f"schema of {operation.table} is not for transactions")
        found = self._catalog.find(operation.table)
        if found is None:
            raise Unfit("42P01", f"there is no table {operation.table}")
        if isinstance(found, Refused):
            raise Unfit(found.sqlstate, f"table {operation.table} cannot be looked up")
        return found


class _at:
    """Turns Unfit into Unrenderable, with the place of the operation."""

    __slots__ = ("_place",)

    def __init__(self, place: int) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Unfit):
            raise Unrenderable(self._place, error.sqlstate, str(error)) from None


def _plan_of(taken: Taken) -> Plan | None:
    return taken[1]


def _is_simple(entry: Entry) -> bool:
    if entry.timeout is not None:
        return False
    for operation in entry.operations:
        kind = type(operation)
        if kind is Statement or (kind is Insert and operation.rows is not None):  # type: ignore[union-attr]
            return False
    return True


def _limited(text: str, seconds: float) -> str:
    """A transaction with a time limit of its own for each of its statements."""
    return (
        "SELECT set_config('processor.limit', current_setting('statement_timeout'), true);"
        f"SET LOCAL statement_timeout = {int(min(max(1, seconds * 1000), _LONGEST))};{text}"
        "SELECT set_config('statement_timeout', current_setting('processor.limit'), true);"
    )


def tables(entry: Entry) -> set[str]:
    """The tables that a transaction names."""
    return {o.table for o in entry.operations if not isinstance(o, Statement)}


def _statement(operation: Statement) -> str:
    found = statements.find(operation.name)
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
