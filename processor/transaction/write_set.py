"""The rows that an operation touches, as far as its producer can tell without PostgreSQL.

A row is identified by a digest of the values in its key columns. The producer does not know the
types of the columns, so values that could be equal in any type suitable for a key have the same
digest: 7, "7" and 7.0; the spellings of a UUID; texts that differ in spaces at their ends. Two rows
may share a digest, but one row never has two. Where that cannot be guaranteed, the operation is
*wide*: it may touch any row of the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from processor.transaction import table_names
from processor.transaction.operations import Delete, Insert, Operation, Statement, Update, Upsert

_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_NUMBER = re.compile(r"[+-]?(?:[0-9.]|nan|inf)", re.I).match
_RADIX = re.compile(r"([+-]?)0[xob][0-9a-f_]+", re.I).fullmatch
_HEX = re.compile(r"[0-9a-f]{32}", re.I).fullmatch
_PUNCTUATION = str.maketrans("", "", "-{}")
#: Integers up to this exponent are written in full, larger ones with an exponent.
_FULL_EXPONENT = 400


class Touch(NamedTuple):
    """What an operation touches in one table.

    `rows` are the digests of the rows that it names, each with the key values that name the row.
    `wide`: it may touch rows that it does not name.
    """

    rows: dict[str, list[tuple[Any, ...]]]
    wide: bool


class Declared:
    """The tables of `overlay.tables`, by any name that an operation may use for them."""

    def __init__(self, tables: Mapping[str, Sequence[str]], search_path: str) -> None:
        self.keys = {
            table_names.canonical(name): tuple(columns) for name, columns in tables.items()
        }
        self._path = {part.strip().strip('"') for part in search_path.split(",")}
        self._found: dict[str, tuple[str, ...]] = {}

    def names(self, table: str) -> tuple[str, ...]:
        """Return the declared tables that `table` may refer to."""
        found = self._found.get(table)
        if found is None:
            found = tuple(name for name in self.keys if name == table or self._same(name, table))
            if len(self._found) < 10_000:
                self._found[table] = found
        return found

    def _same(self, one: str, other: str) -> bool:
        """Whether two names may refer to one table; only its oid, on a session, is certain."""
        *schemas, last = table_names.parts(one)
        *other_schemas, other_last = table_names.parts(other)
        schema, other_schema = "".join(schemas), "".join(other_schemas)
        if last != other_last or (schema and other_schema):
            return False
        # Only the session knows the search_path of its role.
        return bool({"", "$user", schema or other_schema} & self._path)


def decides(keys: Sequence[str], operation: Operation) -> bool:
    """Whether the whole transaction fails or succeeds with the rows that the operation finds."""
    if isinstance(operation, Update):
        given, added = operation.set or {}, operation.add or {}
        # NULL may be refused, if there is a row to set it in; a changed key may already exist.
        return (
            operation.expect is not None
            or None in (*given.values(), *added.values())
            or any(column in given or column in added for column in keys)
        )
    if isinstance(operation, Delete):
        return operation.expect is not None
    return not isinstance(operation, Upsert) or set(operation.conflict) != set(keys)


def touch(keys: Sequence[str], operation: Operation) -> Touch:
    """Return what an operation touches in the table with the key columns `keys`."""
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
            continue  # The row has no key yet: no other operation can name it.
        digest = row_digest(values)
        if digest is None:
            return Touch({}, wide=True)
        named.setdefault(digest, []).append(values)
    return Touch(named, wide=False)


def _where(keys: Sequence[str], where: Mapping[str, Any]) -> Touch:
    values = tuple(where.get(column) for column in keys)
    digest = row_digest(values)
    return Touch({}, wide=True) if digest is None else Touch({digest: [values]}, wide=False)


def _update(keys: Sequence[str], operation: Update) -> Touch:
    named = _where(keys, operation.where)
    given, added = operation.set or {}, operation.add or {}
    if not any(column in given or column in added for column in keys):
        return named
    # The key changes, so the operation touches the row with the old key and that with the new key.
    values = tuple((operation.where | given).get(column) for column in keys)
    changed = row_digest(values)
    if named.wide or changed is None or any(column in added for column in keys):
        return Touch({}, wide=True)
    rows = dict(named.rows)
    rows[changed] = [*rows.get(changed, []), values]
    return Touch(rows, wide=False)


def row_digest(values: Sequence[Any]) -> str | None:
    """Return the digest of the row with these values in its key columns, None if unknown."""
    parts = [canonical(value) for value in values]
    if None in parts:
        return None
    text = "\0".join(part or "" for part in parts)
    # A digest, because Redis writes names of keys into its logs and errors, where values must not
    # appear.
    return blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def canonical(value: Any) -> str | None:
    """Return one text for all values that may be equal in a key column, None if unknown."""
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
            return None  # It may be a UUID or a number.
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
    if isinstance(exponent, int) and exponent >= 0 and whole.adjusted() <= _FULL_EXPONENT:
        return str(int(whole))
    return str(whole)
