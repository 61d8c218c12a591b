"""Pending transactions as changes of typed values, for `merging`.

What a transaction's run would refuse before it touches a row - a column that does not exist, a
value that does not fit - makes it a change that fails. Literals that Python cannot read exactly are
read by the server, all of a call in one statement, and remembered.
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
from processor.reads.row_values import Cast, Sum, Undecided, added_to, compared_with, read_as
from processor.sql.catalog import Column
from processor.sql.column_types import UNCOMPARED, Unfit
from processor.transaction.operations import Delete, Insert, Operation, Statement, Update, Upsert

#: The relations that an operation means, by the name that it gives its table.
Means = Callable[[str], Sequence[Relation]]

_AT_ONCE = 500
_REMEMBERED = 20_000
_CHANGES = 2_000


class Unnamed(Exception):
    """A column or a table that is not known here; perhaps it is new."""


class TypedChanges:
    """Reads values on one session."""

    def __init__(self, database: PostgresSession) -> None:
        self._database = database
        self._known: dict[Cast, Any] = {}
        self._made: dict[int, tuple[Pending, Change]] = {}
        self._strange: set[int] = set()

    def changes(
        self, pending: Sequence[Pending], means: Means, scope: Collection[str], *, anew: bool
    ) -> list[Change]:
        """The changes that these transactions make in the tables of `scope`.

        Raises Unnamed for names that are not known, unless they were looked up `anew`: then the
        transaction fails by them.
        """
        if len(self._made) > _CHANGES:
            self._made.clear()
        new = [each for each in pending if id(each) not in self._made]
        if new:
            self._make(new, means, anew)
        changes = [self._made[id(each)][1] for each in pending]
        while self._strange:
            self._made.pop(self._strange.pop(), None)  # Its names may be known the next time.
        return [
            change if all(step.table in scope for step in change.steps)
            else replace(change, steps=tuple(s for s in change.steps if s.table in scope))
            for change in changes
        ]  # fmt: skip

    def forget(self, pending: Sequence[Pending]) -> None:
        """Remember no changes of these."""
        for each in pending:
            self._made.pop(id(each), None)

    def _make(self, pending: Sequence[Pending], means: Means, anew: bool) -> None:
        made = [self._change(each, means, anew) for each in pending]
        self._ask({cast for change in made for step in change.steps for cast in _casts(step)})
        # The transaction is kept with it: nothing else may get its identity.
        self._made.update(
            (id(each), (each, self._resolved(change)))
            for each, change in zip(pending, made, strict=True)
        )

    def add(self, wanted: Sum) -> Any:
        """An addition, made by the server. Raises Unfit."""
        kind, text = wanted.added
        sql = f"({quoted(wanted.old)}::{wanted.type} + {quoted(text)}::{kind})::{wanted.type}"
        return self._single(sql)

    def _change(self, pending: Pending, means: Means, anew: bool) -> Change:
        try:
            steps = [
                step
                for operation in pending.operations
                for relation in means(operation.table)  # type: ignore[union-attr]
                for step in steps_of(operation, relation)
            ]
        except Undecided:
            return Change(pending.id, decided=False)
        except (Unfit, Fails, ValueError, TypeError, ArithmeticError, RecursionError):
            return Change(pending.id)
        except Unnamed:
            if not anew:
                raise
            self._strange.add(id(pending))
            return Change(pending.id)
        return Change(pending.id, tuple(steps))

    def _resolved(self, change: Change) -> Change:
        if not any(True for step in change.steps for _ in _casts(step)):
            return change
        try:
            steps = tuple(
                replace(step, set=self._read(step.set), where=self._read(step.where))
                for step in change.steps
            )
        except Undecided:
            return Change(change.id, decided=False)
        except Unfit:
            # A domain is only checked for rows that an update meets.
            updates = any(step.kind == "update" and step.set for step in change.steps)
            return Change(change.id, decided=not updates)
        return replace(change, steps=steps)

    def _read(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if not any(isinstance(value, Cast) for value in values.values()):
            return values
        return {
            name: self._found(value) if isinstance(value, Cast) else value
            for name, value in values.items()
        }

    def values(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values of which some are Casts, all of them read. Raises Unfit and Undecided."""
        self._ask({value for value in given.values() if isinstance(value, Cast)})
        return self._read(given)

    def _found(self, cast: Cast) -> Any:
        found = self._known[cast]
        if isinstance(found, Unfit | Undecided):
            raise found
        return found

    def _ask(self, casts: set[Cast]) -> None:
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = [cast for cast in casts if cast not in self._known]
        for start in range(0, len(new), _AT_ONCE):
            self._ask_some(new[start : start + _AT_ONCE])

    def _ask_some(self, casts: Sequence[Cast]) -> None:
        try:
            row = self._database.run(
                "SELECT " + ", ".join(f"{quoted(text)}::{kind}" for kind, text in casts)
            )[0]
            self._known.update(zip(casts, row, strict=True))
        except (DatabaseError, ValueError, OverflowError):
            for cast in casts:
                try:
                    self._known[cast] = self._single(f"{quoted(cast.text)}::{cast.type}")
                except (Unfit, Undecided) as error:
                    self._known[cast] = error

    def _single(self, expression: str) -> Any:
        try:
            return self._database.run(f"SELECT {expression}")[0][0]
        except DatabaseError as error:
            raise Unfit(error.sqlstate, "the server does not read this value") from None
        except (ValueError, OverflowError):
            raise Undecided from None  # A date that Python does not have.


def steps_of(operation: Operation, relation: Relation) -> Iterator[Step]:
    """The steps of one operation. Raises Unnamed, Unfit, Fails and Undecided."""
    name = relation.name
    if isinstance(operation, Insert):
        for row in operation.rows or [operation.values or {}]:
            yield Step("insert", name, _new(relation, row))
    elif isinstance(operation, Upsert):
        if frozenset(operation.conflict) not in relation.unique:
            raise Fails
        conflict = tuple(operation.conflict)
        yield Step("upsert", name, _new(relation, operation.values), conflict=conflict)
    elif isinstance(operation, Update):
        yield _update(operation, relation)
    elif isinstance(operation, Delete):
        where = met(relation, operation.where)
        yield Step("delete", name, where=where, expect=operation.expect)
    else:
        assert isinstance(operation, Statement)


def _update(operation: Update, relation: Relation) -> Step:
    added = {c: added_to(_column(relation, c), v) for c, v in (operation.add or {}).items()}
    if not added.keys().isdisjoint(relation.keys):
        raise Undecided  # Whether the new key is free is known of no row that was read.
    return Step(
        "update", relation.name, typed(relation, operation.set or {}), added,
        met(relation, operation.where), expect=operation.expect,
    )  # fmt: skip


def _new(relation: Relation, row: Mapping[str, Any]) -> dict[str, Any]:
    """A new row. Where NULL is refused it fails, also if it would be an update in the end."""
    if any(row[column] is None for column in relation.needed & row.keys()):
        raise Fails
    if not relation.open <= row.keys():
        raise Fails
    return typed(relation, row)


def typed(relation: Relation, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as their columns hold them, some of them Casts. Raises Unnamed, Unfit, Undecided."""
    return {name: read_as(_column(relation, name), value) for name, value in values.items()}


def met(relation: Relation, where: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a where. Raises Unnamed, Unfit and Undecided."""
    for name in where:
        if _column(relation, name).base in UNCOMPARED:
            raise Unfit("42883", f"column {name} cannot be compared, so not stand in where")
    return {name: compared_with(_column(relation, name), value) for name, value in where.items()}


def _column(relation: Relation, name: str) -> Column:
    column = relation.columns.get(name)
    if column is None:
        raise Unnamed(f"{relation.name}.{name}")
    return column


def _casts(step: Step) -> Iterator[Cast]:
    for values in (step.set, step.where):
        for value in values.values():
            if type(value) is Cast:
                yield value
