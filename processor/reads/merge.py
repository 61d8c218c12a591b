"""Pending writes applied to rows in memory, as PostgreSQL will apply them (P9).

Pure: rows as they were read and changes of which every value has its column's type go in, the rows
as they will be come out. A change that cannot succeed on what it meets - a key that is taken - has
no effect as a whole. One of which only PostgreSQL can tell, or of which a later try may be another
matter, is left out, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor.reads.relations import Relation
from processor.reads.row_values import Sum, Undecided, same_form, total
from processor.sql.column_types import Unfit

#: Makes an addition that Python cannot make. Raises Unfit and Undecided.
Adder = Callable[[Sum], Any]


class Fails(Exception):
    """The change cannot succeed; it will be a dead letter, and has no effect."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: kind is insert, upsert, update or delete; `set` also has what is inserted."""

    kind: str
    table: str
    set: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    conflict: tuple[str, ...] = ()
    expect: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A pending transaction; without steps it fails, or is not `decided`."""

    id: str
    steps: tuple[Step, ...] = ()
    decided: bool = True


@dataclass(slots=True, eq=False)
class Line:
    """A row; `written`: columns that a change wrote; `matched`: what the server said of the row."""

    values: dict[str, Any]
    matched: bool | None = None
    written: frozenset[str] = frozenset()


class Rows:
    """The rows of one table, as far as they are needed, found by key."""

    def __init__(self, relation: Relation, lines: Iterable[Line]) -> None:
        self.relation = relation
        self._lines: dict[int, Line] = {}
        self._keys: dict[tuple[Any, ...], Line] = {}
        self._undo: list[Callable[[], Any]] = []
        self._exact = all(relation.comparable(column) for column in relation.keys)
        for line in lines:
            self._put(line)
        self._undo.clear()

    @property
    def lines(self) -> list[Line]:
        """The rows, in no order that counts."""
        return list(self._lines.values())

    def keep(self) -> None:
        """What was done since the last call stays."""
        self._undo.clear()

    def revert(self) -> None:
        """What was done since the last `keep` is undone."""
        while self._undo:
            self._undo.pop()()

    # Steps.

    def apply(self, step: Step, adder: Adder) -> None:
        """Take one step. Raises Fails, Unfit and Undecided; `revert` after that."""
        if step.kind == "insert":
            self._insert(step.set)
        elif step.kind == "upsert":
            self._upsert(step, adder)
        else:
            found = self.find(step.where)
            if step.kind == "update":
                self._write(found, step.set, step.add, adder)
            else:
                for line in found:
                    self._take(line)
            if step.expect is not None and len(found) != step.expect:
                # It is tried again, and may meet them then.
                raise Undecided

    def find(self, where: Mapping[str, Any]) -> list[Line]:
        """The rows whose columns equal `where`, where None is NULL. Raises Undecided."""
        forms = {}
        for column, value in where.items():
            if value is not None and not self.relation.comparable(column):
                raise Undecided
            forms[column] = self._form(column, value)
        candidates: Iterable[Line] = self._lines.values()
        if all(forms.get(column) is not None for column in self.relation.keys):
            one = self._keys.get(tuple(forms[column] for column in self.relation.keys))
            candidates = [] if one is None else [one]
        return [line for line in candidates if self._meets(line, forms)]

    def _meets(self, line: Line, forms: Mapping[str, Any]) -> bool:
        return all(self._form(c, line.values[c]) == form for c, form in forms.items())

    def _form(self, column: str, value: Any) -> Any:
        return None if value is None else same_form(self.relation.columns[column], value)

    def _insert(self, given: Mapping[str, Any]) -> None:
        filled = self.relation.filled
        values = {n: given[n] if n in given else filled.get(n) for n in self.relation.names}
        line = Line(values, written=frozenset(self.relation.names))
        key = self._key(line)
        if key is not None and not self._exact:
            raise Undecided
        if key in self._keys:
            raise Fails
        self._put(line)

    def _upsert(self, step: Step, adder: Adder) -> None:
        given = step.set
        there = {column: given[column] for column in step.conflict}
        found = [] if None in there.values() else self.find(there)
        if found:
            rest = {name: value for name, value in given.items() if name not in there}
            self._write(found, rest, {}, adder)
        else:
            self._insert(given)

    def _write(
        self, found: Sequence[Line], given: Mapping[str, Any], added: Mapping[str, Any],
        adder: Adder,
    ) -> None:  # fmt: skip
        fresh = [(line, self._new(line, given, added, adder)) for line in found]
        columns = given.keys() | added.keys()
        moves = not columns.isdisjoint(self.relation.keys)
        if moves:
            self._see_free(fresh)
        for line, _ in fresh:
            if moves:
                self._forget(line)
        for line, values in fresh:
            self._undo.append(_restoring(line))
            line.values = values
            line.written |= columns
            if moves:
                self._remember(line)

    def _new(
        self, line: Line, given: Mapping[str, Any], added: Mapping[str, Any], adder: Adder
    ) -> dict[str, Any]:
        values = {**line.values, **given}
        for column, value in added.items():
            made = total(self.relation.columns[column], line.values[column], value)
            values[column] = adder(made) if isinstance(made, Sum) else made
        if any(values[c] is None for c in self.relation.needed & (given.keys() | added.keys())):
            raise Fails
        return values

    def _see_free(self, fresh: Sequence[tuple[Line, dict[str, Any]]]) -> None:
        """Rows get other keys: nobody may have them."""
        if not self._exact:
            raise Undecided
        moved = {id(line) for line, _ in fresh}
        taken: set[tuple[Any, ...]] = set()
        for line, values in fresh:
            key = self._key_of(values)
            if key is None:
                continue
            there = self._keys.get(key)
            if key in taken or (there is not None and id(there) not in moved):
                raise Fails
            if there is not None and there is not line:
                # Whether it meets the other before that moves is up to where they lie on disk.
                raise Undecided
            taken.add(key)

    # The index, and how to undo.

    def _key(self, line: Line) -> tuple[Any, ...] | None:
        return self._key_of(line.values)

    def _key_of(self, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        key = tuple(self._form(column, values[column]) for column in self.relation.keys)
        if not self._exact:
            key = tuple(map(repr, key))
        return None if any(values[column] is None for column in self.relation.keys) else key

    def _put(self, line: Line) -> None:
        self._lines[id(line)] = line
        self._undo.append(lambda: self._lines.pop(id(line)))
        self._remember(line)

    def _take(self, line: Line) -> None:
        del self._lines[id(line)]
        self._undo.append(lambda: self._lines.__setitem__(id(line), line))
        self._forget(line)

    def _remember(self, line: Line) -> None:
        key = self._key(line)
        if key is not None:
            self._keys[key] = line
            self._undo.append(lambda: self._keys.pop(key))

    def _forget(self, line: Line) -> None:
        key = self._key(line)
        if key is not None and self._keys.get(key) is line:
            del self._keys[key]
            self._undo.append(lambda: self._keys.__setitem__(key, line))


def _restoring(line: Line) -> Callable[[], None]:
    values, written = line.values, line.written

    def restore() -> None:
        line.values, line.written = values, written

    return restore


def replay(tables: Mapping[str, Rows], changes: Iterable[Change], adder: Adder) -> bool:
    """Apply changes in order; whether it is known of all of them what they do."""
    complete = True
    for change in changes:
        complete = complete and change.decided
        try:
            for step in change.steps:
                tables[step.table].apply(step, adder)
        except (Fails, Unfit, Undecided) as error:
            for rows in tables.values():
                rows.revert()
            complete = complete and not isinstance(error, Undecided)
        for rows in tables.values():
            rows.keep()
    return complete
