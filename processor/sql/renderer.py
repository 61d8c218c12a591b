"""Transactions as SQL text: quick (EXECUTE of prepared statements) and plain, equal in meaning.

Values never become SQL: each is a literal of its column's type, and the text of a statement comes
from the registry alone. `Renderer.batch` renders many transactions at once and folds runs of one
shape (`folding`). `Renderer.plain` renders one in plain SQL, for the run that pronounces poison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

from processor.connections.sql_literals import quoted
from processor.sql.catalog import Catalog, Refused, Table
from processor.sql.column_types import Unfit
from processor.sql.folding import SHORTEST_RUN, Fold, NotFolded, folds
from processor.sql.statement_shapes import Shape, compiled, key_of
from processor.transaction import statements, table_names
from processor.transaction.entry import Entry
from processor.transaction.operations import Insert, Operation, Statement
from processor.transaction.values import json_text

#: The longest statement_timeout, in milliseconds: 24 days.
_LONGEST = 2**31 - 1
_FORBIDDEN_SCHEMAS = frozenset({"processor", "pg_catalog", "information_schema"})

#: What an unforeseen value may raise: that must end one entry, not stop the lane.
_UNFORESEEN = (ValueError, TypeError, ArithmeticError, RecursionError)


class Unrenderable(Exception):
    """A transaction cannot be rendered for its tables; names the operation, if it is known."""

    def __init__(
        self, number: int | None, sqlstate: str, problem: str, column: str = ""
    ) -> None:
        super().__init__(problem if number is None else f"operations[{number}]: {problem}")
        self.number = number
        self.sqlstate = sqlstate
        self.problem = problem
        self.column = column


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How transactions of one shape are rendered: singly by `shapes`, or folded by `folds`."""

    shapes: list[Shape]
    folds: list[Fold] | None
    tables: frozenset[str]


#: A transaction with its plan (None if it has statements or rows) and each operation's values.
Taken = tuple[Entry, Plan | None, list[list[Any]]]


class Renderer:
    """Renders transactions for one session; keeps the compiled and prepared statements."""

    def __init__(
        self, catalog: Catalog, allowed: Sequence[str], *, prepares: bool, restoring: str = "",
        longest_timeout: float = float("inf"),
    ) -> None:  # fmt: skip
        """`restoring` follows each transaction with statements, which may change the session.

        A transaction whose own time limit exceeds `longest_timeout`, in seconds, is not rendered.
        """
        self._longest_timeout = longest_timeout
        self._catalog = catalog
        self._restoring = restoring
        self._allowed = frozenset(map(table_names.canonical, allowed))
        self._prepares = prepares
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._wanted: list[Shape | Fold] = []
        self._prepared: list[Shape | Fold] = []
        self._number = 0
        #: Grows whenever text that was rendered before must no longer be sent.
        self.version = 0

    @property
    def size(self) -> int:
        """The number of shapes and plans that are kept."""
        return len(self._shapes) + len(self._plans)

    def forget(self) -> None:
        """Forget all shapes, as the catalog was forgotten. Their names are never used again."""
        self.version += 1
        self._shapes.clear()
        self._plans.clear()
        self._wanted.clear()

    def unprepare(self) -> None:
        """Record that the server has no prepared statement any more."""
        self.version += 1
        for statement in self._prepared:
            statement.prepared = False
        self._prepared.clear()

    def prepare(self) -> str:
        """Return the PREPAREs that the text rendered since the last call needs."""
        wanted = [s for s in dict.fromkeys(self._wanted) if not s.prepared]
        self._wanted.clear()
        for statement in wanted:
            statement.prepared = True
        self._prepared += wanted
        return "".join(statement.prepare for statement in wanted)

    def take(self, entry: Entry) -> Taken:
        """Find a transaction's plan and values. Raises Unrenderable for names that do not exist."""
        if not _is_simple(entry):
            return entry, None, []
        pairs = [key_of(operation) for operation in entry.operations]
        whole = tuple(key for key, _ in pairs)
        plan = self._plans.get(whole) or self._plan(whole, entry)
        return entry, plan, [values for _, values in pairs]

    def take_all(
        self, entries: Sequence[Entry]
    ) -> tuple[list[Taken], dict[str, Unrenderable]]:
        """Take transactions; also return those that cannot be rendered, by id."""
        taken: list[Taken] = []
        unfit: dict[str, Unrenderable] = {}
        for entry in entries:
            try:
                taken.append(self.take(entry))
            except Unrenderable as error:
                unfit[entry.id] = error
            except _UNFORESEEN as error:
                unfit[entry.id] = _unforeseen(error)
        return taken, unfit

    def _plan(self, whole: tuple[Any, ...], entry: Entry) -> Plan:
        shapes, targets = [], []
        for number, (key, operation) in enumerate(zip(whole, entry.operations, strict=True)):
            with _at(number):
                targets.append(self._table(operation))
                shapes.append(self._shape(key, operation, targets[-1]))
        self._number += 1
        folded = folds(entry.operations, targets, f"processor_f{self._number}")
        tables = frozenset(operation.table for operation in entry.operations)  # type: ignore[union-attr]
        plan = Plan(shapes, folded if self._prepares else None, tables)
        self._plans[whole] = plan
        return plan

    def batch(self, taken: Sequence[Taken]) -> tuple[str, dict[str, Unrenderable]]:
        """Render transactions in order; also return those that cannot be rendered, by id."""
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
                except _UNFORESEEN as error:
                    unfit[one[0].id] = _unforeseen(error)
        return "".join(parts), unfit

    def _fold(self, plan: Plan | None, run: Sequence[Taken]) -> list[str] | None:
        if plan is None or plan.folds is None or len(run) < SHORTEST_RUN:
            return None
        try:
            texts = [
                fold.write([values[number] for _, _, values in run])
                for number, fold in enumerate(plan.folds)
            ]
        except (Unfit, NotFolded, *_UNFORESEEN):
            return None
        self._wanted += plan.folds
        return texts

    def _single(self, taken: Taken) -> str:
        entry, plan, values = taken
        if plan is None or not self._prepares:
            return self.plain(entry)
        parts = []
        for number, shape in enumerate(plan.shapes):
            with _at(number):
                parts.append(shape.quick(values[number]))
        self._wanted += plan.shapes
        return "".join(parts)

    def steps(self, taken: Taken) -> list[str]:
        """Return each operation in plain SQL; the values were found to fit."""
        entry, plan, values = taken
        if plan is not None:
            return [shape.plain(v) for shape, v in zip(plan.shapes, values, strict=True)]
        found = ["".join(self._operation(operation)) for operation in entry.operations]
        if any(type(operation) is Statement for operation in entry.operations):
            found[-1] += self._restoring
        return found

    def plain(self, entry: Entry) -> str:
        """Return a transaction in plain SQL. Raises Unrenderable."""
        parts: list[str] = []
        for number, operation in enumerate(entry.operations):
            with _at(number):
                parts += self._operation(operation)
        changes = any(type(operation) is Statement for operation in entry.operations)
        if entry.timeout is None:
            return "".join(parts) + (self._restoring if changes else "")
        if entry.timeout > self._longest_timeout:
            # Its producer has other settings than this processor, or an earlier release.
            raise Unrenderable(
                None, "22023", f"its timeout of {entry.timeout:g} s exceeds"
                f" {self._longest_timeout:g} s (database.longest_timeout)",
            )  # fmt: skip
        text = _limited(entry, parts)
        return text + (self._restoring if changes else _USUAL_SETTINGS)

    def _operation(self, operation: Operation) -> Iterator[str]:
        if isinstance(operation, Statement):
            yield _statement(operation)
        elif isinstance(operation, Insert) and operation.rows is not None:
            for row in operation.rows:
                yield from self._operation(
                    Insert(operation.table, row, overriding=operation.overriding)
                )
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
        schema = table_names.parts(operation.table)[:-1]
        if not _FORBIDDEN_SCHEMAS.isdisjoint(schema):
            raise Unfit("42501", f"transactions must not write to {operation.table}")
        found = self._catalog.find(operation.table)
        if found is None:
            raise Unfit("42P01", f"table {operation.table} does not exist")
        if isinstance(found, Refused):
            raise Unfit(found.sqlstate, f"table {operation.table} cannot be looked up")
        return found


class _at:
    """Turns Unfit into Unrenderable, with the number of the operation."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Unfit):
            raise Unrenderable(
                self._number, error.sqlstate, error.problem, error.column
            ) from None


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


#: Ends what `_limited` begins.
_USUAL_SETTINGS = (
    "SELECT pg_catalog.set_config('statement_timeout',"
    " pg_catalog.current_setting('processor.limit'), true);"
)


def _limited(entry: Entry, statements: Sequence[str]) -> str:
    """Return the statements of a transaction with its time limit, which counts for each.

    Each names itself in application_name, so that another session sees which one runs (rule 18).
    """
    limit = int(min(max(1, (entry.timeout or 0.0) * 1000), _LONGEST))
    named = (
        f"SET LOCAL application_name = 'processor {entry.id} {number}';{statement}"
        for number, statement in enumerate(statements)
    )
    return (
        "SELECT pg_catalog.set_config('processor.limit',"
        " pg_catalog.current_setting('statement_timeout'), true);"
        f"SET LOCAL statement_timeout = {limit};{''.join(named)}"
    )


def tables_of(entries: Iterable[Entry]) -> set[str]:
    """Return the tables that transactions name."""
    return {o.table for e in entries for o in e.operations if not isinstance(o, Statement)}


def tables_taken(taken: Iterable[Taken]) -> frozenset[str]:
    """Return the tables that taken transactions name."""
    plans = {plan for _, plan, _ in taken}
    if None not in plans:
        return frozenset().union(*(plan.tables for plan in plans if plan))
    return frozenset(tables_of(entry for entry, _, _ in taken))


def _unforeseen(error: Exception) -> Unrenderable:
    # The class alone: the text of the error may contain the value (rule 19).
    return Unrenderable(None, "22000", f"cannot be rendered: {type(error).__name__}")


def _statement(operation: Statement) -> str:
    found = statements.find(operation.name)
    if found is None:
        raise Unfit("42883", f"statement {operation.name} is not registered")
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
    return quoted(json_text(value))
