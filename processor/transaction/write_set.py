"""Which rows an operation touches, as far as its producer can tell without PostgreSQL.

A row is known by its *mark*, made of the values of its key columns. The producer does not know
their types, so values that could be equal in any column fit for a key have one mark: 7, "7" and
7.0; the spellings of a UUID; texts that differ in blanks at their ends. Two rows may share a mark,
one row never has two. Where that cannot be promised the operation is *wide*.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from processor.transaction.operations import Delete, Insert, Operation, Statement, Update, Upsert

_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_NUMBER = re.compile(r"[+-]?(?:[0-9.]|nan|inf)", re.I).match
_RADIX = re.compile(r"([+-]?)0[xob][0-9a-f_]+", re.I).fullmatch
_HEX = re.compile(r"[0-9a-f]{32}", re.I).fullmatch
_PUNCTUATION = str.maketrans("", "", "-{}")
#: Whole numbers up to here are written out, larger ones by their exponent.
_WRITTEN_OUT = 400


class Touch(NamedTuple):
    """What an operation touches in one table.

    `rows` are the marks of the rows that it names, each with the values that named it. `wide`: it
    may touch rows that it does not name.
    """

    rows: dict[str, list[tuple[Any, ...]]]
    wide: bool


class Declared:
    """The tables of `overlay.tables`, found by any name under which an operation may mean them."""

    def __init__(self, tables: Mapping[str, Sequence[str]], search_path: str) -> None:
        self.keys = {name: tuple(columns) for name, columns in tables.items()}
        self._path = {part.strip().strip('"') for part in search_path.split(",")}
        self._found: dict[str, tuple[str, ...]] = {}

    def names(self, table: str) -> tuple[str, ...]:
        """The declared tables that `table` may be."""
        found = self._found.get(table)
        if found is None:
            found = tuple(name for name in self.keys if name == table or self._same(name, table))
            if len(self._found) < 10_000:
                self._found[table] = found
        return found

    def _same(self, one: str, other: str) -> bool:
        """Whether names may be of one table. Who knows better, on a session, looks at its oid."""
        schema, _, last = one.rpartition(".")
        other_schema, _, other_last = other.rpartition(".")
        if last != other_last or (schema and other_schema):
            return False
        return (schema or other_schema) in self._path or "$user" in self._path


def decides(keys: Sequence[str], operation: Operation) -> bool:
    """Whether what an operation finds decides about its whole transaction."""
    if isinstance(operation, Update):
        given, added = operation.set or {}, operation.add or {}
        # NULL is perhaps refused, if there is a row to set it in; a key that changes may be taken.
        return (
            operation.expect is not None
            or None in (*given.values(), *added.values())
            or any(column in given or column in added for column in keys)
        )
    if isinstance(operation, Delete):
        return operation.expect is not None
    return not isinstance(operation, Upsert) or set(operation.conflict) != set(keys)


def touch(keys: Sequence[str], operation: Operation) -> Touch:
    """What an operation touches in the table whose key columns are `keys`."""
    if isinstance(operation, Insert):
        return _rows(keys, operation.rows or [operation.values or {}])
    if isinstance(operation, Upsert):
        if decides(keys, operation):
            return Touch({}, wide=True)
        return _rows(keys, [operation.values])
    if isinstance(operation, Update):
        return _update(keys, operation)
    if isinstance(operation, Delete):
        return _where(keys, operation.where)
    assert not isinstance(operation, Statement)
    raise AssertionError(operation)


def _rows(keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Touch:
    named: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        values = tuple(row.get(column) for column in keys)
        if None in values:
            continue  # No key yet: nobody can name this row.
        made = mark(values)
        if made is None:
            return Touch({}, wide=True)
        named.setdefault(made, []).append(values)
    return Touch(named, wide=False)


def _where(keys: Sequence[str], where: Mapping[str, Any]) -> Touch:
    values = tuple(where.get(column) for column in keys)
    made = mark(values)
    return Touch({}, wide=True) if made is None else Touch({made: [values]}, wide=False)


def _update(keys: Sequence[str], operation: Update) -> Touch:
    named = _where(keys, operation.where)
    given, added = operation.set or {}, operation.add or {}
    if not any(column in given or column in added for column in keys):
        return named
    # The key changes: it leaves one row and may meet another.
    values = tuple((operation.where | given).get(column) for column in keys)
    there = mark(values)
    if named.wide or there is None or any(column in added for column in keys):
        return Touch({}, wide=True)
    rows = dict(named.rows)
    rows[there] = [*rows.get(there, []), values]
    return Touch(rows, wide=False)


def mark(values: Sequence[Any]) -> str | None:
    """The mark of the row with these values in its key columns; None: it cannot be told."""
    parts = [canonical(value) for value in values]
    if None in parts:
        return None
    text = "\0".join(part or "" for part in parts)
    # A digest: names of keys stand in Redis's own logs and refusals, and values must not.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def canonical(value: Any) -> str | None:
    """One text for all values that may be equal in a key column; None: it cannot be told."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return str(value) if value.bit_length() < 1200 else _number(Decimal(value))
    if kind is float:
        return _number(Decimal(repr(value)))
    if kind is Decimal:
        return _number(value)
    if kind is bool:
        return "true" if value else "false"
    return None


def _text(value: str) -> str | None:
    text = value.strip()
    bare = text.translate(_PUNCTUATION)
    if len(bare) == 32 and _HEX(bare):
        if bare.isdigit():
            return _number(Decimal(bare))
        if re.fullmatch("[0-9]+[eE][0-9]+", bare):
            return None  # A UUID or a number.
        return bare.lower()
    if not _NUMBER(text):
        return text
    try:
        radix = _RADIX(text)
        return _number(Decimal(int(text, 0)) if radix else Decimal(text))
    except (ArithmeticError, ValueError):
        return text


def _number(value: Decimal) -> str:
    if not value.is_finite():
        return str(value).lower().lstrip("-s") if value.is_nan() else str(value).lower()
    whole = value.normalize(_EXACT)
    exponent = whole.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= 0 and whole.adjusted() <= _WRITTEN_OUT:
        return str(int(whole))
    return str(whole)
