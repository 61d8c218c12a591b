"""Pending writes applied to rows in memory, as PostgreSQL will apply them (P9).

Pure: the input is rows as they were read, and changes whose values all have the types of their
columns; the output is the rows as they will be. A change that cannot succeed on these rows, because
a key is taken, has no effect as a whole. A change is left out, and the result says so, if only
PostgreSQL can tell its effect, or if a later attempt may have another one.
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
    """The change cannot succeed; it will become a dead letter and has no effect."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation; `kind` is insert, upsert, keep (an upsert that changes no row that exists),
    update or delete, and `set` includes inserted values."""

    kind: str
    table: str
    set: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    conflict: tuple[str, ...] = ()
    expect: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A pending transaction. Without steps it fails or, unless `decided`, its effect is unknown."""

    id: str
    steps: tuple[Step, ...] = ()
    decided: bool = True


@dataclass(slots=True, eq=False)
class MergedRow:
    """A row with the columns that changes wrote.

    `matched` is whether the server found that the row meets the read's condition.
    """

    values: dict[str, Any]
    matched: bool | None = None
    written: frozenset[str] = frozenset()


class TableRows:
    """The rows of one table that a read needs, indexed by key."""

    def __init__(self, relation: Relation, rows: Iterable[MergedRow]) -> None:
        self.relation = relation
        self._rows: dict[int, MergedRow] = {}
        self._by_key: dict[tuple[Any, ...], MergedRow] = {}
        self._undo: list[Callable[[], Any]] = []
        self._exact = all(relation.comparable(column) for column in relation.keys)
        for row in rows:
            self._put(row)
        self._undo.clear()

    @property
    def rows(self) -> list[MergedRow]:
        """The rows, in no particular order."""
        return list(self._rows.values())

    def keep(self) -> None:
        """Keep what was changed since the last call."""
        self._undo.clear()

    def revert(self) -> None:
        """Undo what was changed since the last `keep`."""
        while self._undo:
            self._undo.pop()()

    # Steps.

    def apply(self, step: Step, adder: Adder) -> None:
        """Take one step. Raises Fails, Unfit and Undecided; the caller then calls `revert`."""
        if step.kind == "insert":
            self._insert(step.set)
        elif step.kind in ("upsert", "keep"):
            self._upsert(step, adder)
        else:
            found = self.find(step.where)
            if step.kind == "update":
                self._update(found, step.set, step.add, adder)
            else:
                for row in found:
                    self._delete(row)
            if step.expect is not None and len(found) != step.expect:
                # The transaction is retried, and may then meet the expected number.
                raise Undecided

    def find(self, where: Mapping[str, Any]) -> list[MergedRow]:
        """Return the rows whose columns equal `where`, where None is NULL. Raises Undecided."""
        forms = {}
        for column, value in where.items():
            if value is not None and not self.relation.comparable(column):
                raise Undecided
            forms[column] = self._form(column, value)
        candidates: Iterable[MergedRow] = self._rows.values()
        if all(forms.get(column) is not None for column in self.relation.keys):
            row = self._by_key.get(tuple(forms[column] for column in self.relation.keys))
            candidates = [] if row is None else [row]
        found = [row for row in candidates if self._meets(row, forms)]
        if any(self._may_be_json_null(row, where) for row in found):
            raise Undecided
        return found

    def _may_be_json_null(self, row: MergedRow, where: Mapping[str, Any]) -> bool:
        """Whether a row was read with a None that may be JSON's null, where NULL is asked for."""
        return any(
            value is None and column not in row.written and self.relation.holds_json(column)
            for column, value in where.items()
        )

    def _meets(self, row: MergedRow, forms: Mapping[str, Any]) -> bool:
        return all(self._form(c, row.values[c]) == form for c, form in forms.items())

    def _form(self, column: str, value: Any) -> Any:
        return None if value is None else same_form(self.relation.columns[column], value)

    def _insert(self, given: Mapping[str, Any]) -> None:
        defaults = self.relation.defaults
        values = {n: given[n] if n in given else defaults.get(n) for n in self.relation.names}
        row = MergedRow(values, written=frozenset(self.relation.names))
        key = self._key(row.values)
        if key is not None and not self._exact:
            raise Undecided
        if key in self._by_key:
            raise Fails
        self._put(row)

    def _upsert(self, step: Step, adder: Adder) -> None:
        given = step.set
        conflict = {column: given[column] for column in step.conflict}
        found = [] if None in conflict.values() else self.find(conflict)
        if found and step.kind == "keep":
            return
        if found:
            rest = {name: value for name, value in given.items() if name not in conflict}
            self._update(found, rest, {}, adder)
        else:
            self._insert(given)

    def _update(
        self, found: Sequence[MergedRow], given: Mapping[str, Any], added: Mapping[str, Any],
        adder: Adder,
    ) -> None:  # fmt: skip
        updated = [(row, self._updated(row, given, added, adder)) for row in found]
        columns = given.keys() | added.keys()
        moves = not columns.isdisjoint(self.relation.keys)
        if moves:
            self._check_keys_free(updated)
        for row, _ in updated:
            if moves:
                self._unindex(row)
        for row, values in updated:
            self._undo.append(_restoring(row))
            row.values = values
            row.written |= columns
            if moves:
                self._index(row)

    def _updated(
        self, row: MergedRow, given: Mapping[str, Any], added: Mapping[str, Any], adder: Adder
    ) -> dict[str, Any]:
        values = {**row.values, **given}
        for column, value in added.items():
            made = total(self.relation.columns[column], row.values[column], value)
            values[column] = adder(made) if isinstance(made, Sum) else made
        if any(values[c] is None for c in self.relation.not_null & (given.keys() | added.keys())):
            raise Fails
        return values

    def _check_keys_free(self, updated: Sequence[tuple[MergedRow, dict[str, Any]]]) -> None:
        """Check that no row has a key that an update gives to another. Raises Fails, Undecided."""
        if not self._exact:
            raise Undecided
        moved = {id(row) for row, _ in updated}
        taken: set[tuple[Any, ...]] = set()
        for row, values in updated:
            key = self._key(values)
            if key is None:
                continue
            holder = self._by_key.get(key)
            if key in taken or (holder is not None and id(holder) not in moved):
                raise Fails
            if holder is not None and holder is not row:
                # Whether the holder moves first depends on where the rows lie on disk.
                raise Undecided
            taken.add(key)

    # The index, and how to undo.

    def _key(self, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        key = tuple(self._form(column, values[column]) for column in self.relation.keys)
        if not self._exact:
            key = tuple(map(repr, key))
        return None if any(values[column] is None for column in self.relation.keys) else key

    def _put(self, row: MergedRow) -> None:
        self._rows[id(row)] = row
        self._undo.append(lambda: self._rows.pop(id(row)))
        self._index(row)

    def _delete(self, row: MergedRow) -> None:
        del self._rows[id(row)]
        self._undo.append(lambda: self._rows.__setitem__(id(row), row))
        self._unindex(row)

    def _index(self, row: MergedRow) -> None:
        key = self._key(row.values)
        if key is not None:
            self._by_key[key] = row
            self._undo.append(lambda: self._by_key.pop(key))

    def _unindex(self, row: MergedRow) -> None:
        key = self._key(row.values)
        if key is not None and self._by_key.get(key) is row:
            del self._by_key[key]
            self._undo.append(lambda: self._by_key.__setitem__(key, row))


def _restoring(row: MergedRow) -> Callable[[], None]:
    values, written = row.values, row.written

    def restore() -> None:
        row.values, row.written = values, written

    return restore


def replay(tables: Mapping[str, TableRows], changes: Iterable[Change], adder: Adder) -> bool:
    """Apply changes in order; return whether the effect of all of them is known."""
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
