"""Pending transactions as changes whose values have the types of their columns, for `merge`.

A transaction that PostgreSQL would refuse before it touches a row, because a column does not exist
or a value does not fit, becomes a change that fails. Literals that Python cannot convert exactly
are converted by the server, all of a call in one statement, and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from processor.buffer.overlay import Pending
from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError
from processor.reads.merge import Change, Fails, Step
from processor.reads.relations import Relation
from processor.reads.row_values import (
    JSON_NULL,
    Cast,
    Sum,
    Undecided,
    added_to,
    compared_with,
    read_as,
)
from processor.sql.catalog import Column
from processor.sql.column_types import UNCOMPARED, Unfit, no_equality
from processor.transaction.operations import Delete, Insert, Operation, Statement, Update, Upsert

#: Returns the relations to which an operation refers by the name of its table.
Resolve = Callable[[str], Sequence[Relation]]

#: How many literals one statement converts, and how many values and changes are remembered.
_CASTS_AT_ONCE = 500
_MOST_VALUES = 20_000
_MOST_CHANGES = 2_000


class UnknownName(Exception):
    """A column or table that did not exist when the tables were looked up; it may be new."""


class TypedChanges:
    """Converts pending transactions on one session."""

    def __init__(self, database: PostgresSession) -> None:
        self._database = database
        self._values: dict[Cast, Any] = {}
        self._changes: dict[int, tuple[Pending, Change]] = {}
        self._uncertain: set[int] = set()

    def changes(
        self, pending: Sequence[Pending], resolve: Resolve, scope: Collection[str], *,
        refreshed: bool,
    ) -> list[Change]:  # fmt: skip
        """Return the changes that these transactions make in the tables of `scope`.

        Raises UnknownName for unknown names. If the tables were just `refreshed`, the transaction
        that uses such a name fails instead.
        """
        if len(self._changes) > _MOST_CHANGES:
            self._changes.clear()
        new = [each for each in pending if id(each) not in self._changes]
        if new:
            self._make(new, resolve, refreshed)
        changes = [self._changes[id(each)][1] for each in pending]
        while self._uncertain:
            self._changes.pop(self._uncertain.pop(), None)  # Its names may be known next time.
        return [
            change if all(step.table in scope for step in change.steps)
            else replace(change, steps=tuple(s for s in change.steps if s.table in scope))
            for change in changes
        ]  # fmt: skip

    def forget(self, pending: Sequence[Pending]) -> None:
        """Forget the changes of these transactions."""
        for each in pending:
            self._changes.pop(id(each), None)

    def _make(self, pending: Sequence[Pending], resolve: Resolve, refreshed: bool) -> None:
        changes = [self._change(each, resolve, refreshed) for each in pending]
        self._convert({cast for each in changes for step in each.steps for cast in _casts(step)})
        # The transaction is kept with its change, so that no other object gets its id().
        self._changes.update(
            (id(each), (each, self._with_values(change)))
            for each, change in zip(pending, changes, strict=True)
        )

    def add(self, wanted: Sum) -> Any:
        """Make an addition on the server. Raises Unfit and Undecided."""
        kind, text = wanted.added
        sql = f"({quoted(wanted.old)}::{wanted.type} + {quoted(text)}::{kind})::{wanted.type}"
        return self._evaluate(sql)

    def _change(self, pending: Pending, resolve: Resolve, refreshed: bool) -> Change:
        try:
            steps = [
                step
                for operation in pending.operations
                for relation in resolve(operation.table)  # type: ignore[union-attr]
                for step in steps_of(operation, relation)
            ]
        except Undecided:
            return Change(pending.id, decided=False)
        except (Unfit, Fails, ValueError, TypeError, ArithmeticError, RecursionError):
            return Change(pending.id)
        except UnknownName:
            if not refreshed:
                raise
            self._uncertain.add(id(pending))
            return Change(pending.id)
        return Change(pending.id, tuple(steps))

    def _with_values(self, change: Change) -> Change:
        if not any(True for step in change.steps for _ in _casts(step)):
            return change
        try:
            steps = tuple(
                replace(step, set=self._converted(step.set), where=self._converted(step.where))
                for step in change.steps
            )
        except Undecided:
            return Change(change.id, decided=False)
        except Unfit:
            # A domain's constraint is checked only for rows that the update touches.
            updates = any(step.kind == "update" and step.set for step in change.steps)
            return Change(change.id, decided=not updates)
        return replace(change, steps=steps)

    def _converted(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if not any(isinstance(value, Cast) for value in values.values()):
            return values
        return {
            name: self._value(value) if isinstance(value, Cast) else value
            for name, value in values.items()
        }

    def values(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return values with their Casts converted. Raises Unfit and Undecided."""
        self._convert({value for value in given.values() if isinstance(value, Cast)})
        return self._converted(given)

    def _value(self, cast: Cast) -> Any:
        found = self._values[cast]
        if isinstance(found, Unfit | Undecided):
            raise found
        return found

    def _convert(self, casts: set[Cast]) -> None:
        if len(self._values) > _MOST_VALUES:
            self._values.clear()
        new = [cast for cast in casts if cast not in self._values]
        for start in range(0, len(new), _CASTS_AT_ONCE):
            self._convert_some(new[start : start + _CASTS_AT_ONCE])

    def _convert_some(self, casts: Sequence[Cast]) -> None:
        try:
            row = self._database.run(
                "SELECT " + ", ".join(f"{quoted(text)}::{kind}" for kind, text in casts)
            )[0]
            self._values.update((c, _not_null(v)) for c, v in zip(casts, row, strict=True))
        except (DatabaseError, ValueError, OverflowError):
            for cast in casts:
                try:
                    self._values[cast] = _not_null(
                        self._evaluate(f"{quoted(cast.text)}::{cast.type}")
                    )
                except (Unfit, Undecided) as error:
                    self._values[cast] = error

    def _evaluate(self, expression: str) -> Any:
        try:
            return self._database.run(f"SELECT {expression}")[0][0]
        except DatabaseError as error:
            raise Unfit(error.sqlstate, "the server does not accept this value") from None
        except (ValueError, OverflowError):
            raise Undecided from None  # A date that Python does not have.


def _not_null(value: Any) -> Any:
    # A literal is never NULL, so this is the null of JSON, in a domain over a JSON type.
    return JSON_NULL if value is None else value


def steps_of(operation: Operation, relation: Relation) -> Iterator[Step]:
    """Yield the steps of one operation. Raises UnknownName, Unfit, Fails and Undecided."""
    name = relation.name
    if isinstance(operation, Insert):
        for row in operation.rows or [operation.values or {}]:
            yield Step("insert", name, _new(relation, row, operation.overriding))
    elif isinstance(operation, Upsert):
        columns = frozenset(operation.conflict)
        if columns in relation.partial:
            raise Undecided  # Only PostgreSQL can tell which rows meet the index's predicate.
        if columns not in relation.unique:
            raise Fails
        changed = operation.values.keys() - columns if operation.update else set()
        if not relation.identity.isdisjoint(changed):
            raise Fails
        kind = "upsert" if operation.update else "keep"
        row = _new(relation, operation.values, operation.overriding)
        yield Step(kind, name, row, conflict=tuple(operation.conflict))
    elif isinstance(operation, Update):
        yield _update(operation, relation)
    elif isinstance(operation, Delete):
        where = typed_where(relation, operation.where)
        yield Step("delete", name, where=where, expect=operation.expect)
    else:
        assert isinstance(operation, Statement)


def _update(operation: Update, relation: Relation) -> Step:
    added = {c: added_to(_column(relation, c), v) for c, v in (operation.add or {}).items()}
    if not (relation.identity | relation.generated).isdisjoint({*added, *(operation.set or ())}):
        raise Fails
    if not added.keys().isdisjoint(relation.keys):
        raise Undecided  # The rows that were read do not show whether the new key is free.
    return Step(
        "update", relation.name, typed(relation, operation.set or {}), added,
        typed_where(relation, operation.where), expect=operation.expect,
    )  # fmt: skip


def _new(relation: Relation, row: Mapping[str, Any], overriding: bool) -> dict[str, Any]:
    """Return the values of a new row; a NULL that is refused fails, even in an upsert's update."""
    fixed = relation.generated if overriding else relation.identity | relation.generated
    if not fixed.isdisjoint(row):
        raise Fails
    if any(row[column] is None for column in relation.not_null & row.keys()):
        raise Fails
    if not relation.required <= row.keys():
        raise Fails
    return typed(relation, row)


def typed(relation: Relation, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as their columns store them, some as Casts.

    Raises UnknownName, Unfit and Undecided.
    """
    return {name: read_as(_column(relation, name), value) for name, value in values.items()}


def typed_where(relation: Relation, where: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a where as they are compared, some as Casts.

    Raises UnknownName, Unfit and Undecided.
    """
    for name in where:
        if _column(relation, name).base in UNCOMPARED:
            raise no_equality(name)
    return {name: compared_with(_column(relation, name), value) for name, value in where.items()}


def _column(relation: Relation, name: str) -> Column:
    column = relation.columns.get(name)
    if column is None:
        raise UnknownName(f"{relation.name}.{name}")
    return column


def _casts(step: Step) -> Iterator[Cast]:
    for values in (step.set, step.where):
        for value in values.values():
            if type(value) is Cast:
                yield value
