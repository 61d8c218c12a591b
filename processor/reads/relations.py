"""A declared table on one server, with all that a merge of pending writes needs to know.

`sql.catalog` has the types. This adds what decides whether a row can be written - NOT NULL columns,
constant defaults - and for which columns Python can tell that two values are equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted, table
from processor.reads.row_values import read_as
from processor.sql.catalog import Catalog, Column, Refused, Table
from processor.sql.column_types import (
    BOOL,
    BPCHAR,
    BYTEA,
    DATE,
    FLOAT4,
    FLOAT8,
    JSON,
    JSONB,
    NAME,
    NUMERIC,
    OID,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    VARCHAR,
    WHOLE,
)

_TEXTS = frozenset({TEXT, VARCHAR, BPCHAR, NAME})
_EQUAL = frozenset({
    *WHOLE, *_TEXTS, BOOL, OID, UUID, NUMERIC, FLOAT4, FLOAT8, DATE, TIME, TIMESTAMP, TIMESTAMPTZ,
    BYTEA,
})  # fmt: skip
#: Types whose equal values have equal row digests (`write_set`), in whatever form they are sent:
#: not name, which is cut off silently, and not oid, for which -1 is 4294967295.
_WITH_DIGEST = frozenset({*WHOLE, TEXT, VARCHAR, BPCHAR, UUID, NUMERIC})
#: A default that is the same for every row and calls no function.
_CONSTANT = re.compile(r"-?[0-9.]+|true|false|'(?:[^']|'')*'::[a-z][a-z0-9_ ]*(?:\[\])?").fullmatch


@dataclass(frozen=True, slots=True)
class Relation:
    """A declared table on one server.

    `keys` are the declared key columns, `names` all columns in order. `not_null` are the columns
    that refuse NULL, `required` those of them that have no default. `defaults` are the values of
    constant defaults. `labels` are the columns of an enumerated type, `unique` the sets of columns
    with a unique index, `partial` those with partial ones only. `identity` are the columns that are
    GENERATED ALWAYS AS IDENTITY, `generated` those that are computed from others.
    """

    name: str
    oid: int
    keys: tuple[str, ...]
    names: tuple[str, ...]
    columns: Mapping[str, Column]
    not_null: frozenset[str]
    required: frozenset[str]
    defaults: Mapping[str, Any]
    labels: frozenset[str]
    unique: frozenset[frozenset[str]]
    partial: frozenset[frozenset[str]] = frozenset()
    identity: frozenset[str] = frozenset()
    generated: frozenset[str] = frozenset()

    @property
    def has_digests(self) -> bool:
        """Whether the pending writes of a row can be found by its row digest."""
        return all(self._is_of(column, _WITH_DIGEST) for column in self.keys)

    def comparable(self, column: str) -> bool:
        """Whether Python can tell that two values of a column are equal."""
        return self._is_of(column, _EQUAL)

    def holds_json(self, column: str) -> bool:
        """Whether a column may hold JSON's null, which is read as None like the NULL of SQL."""
        return self.columns[column].base in (JSON, JSONB)

    def _is_of(self, name: str, bases: frozenset[int]) -> bool:
        column = self.columns[name]
        if not column.deterministic or column.element:
            return False
        return column.base in bases or name in self.labels


def load(
    database: PostgresSession, declared: Mapping[str, Sequence[str]]
) -> dict[str, Relation | Refused | None]:
    """Return the declared tables on this server; None for a table that does not exist.

    Raises DatabaseError and DatabaseUnavailable.
    """
    catalog = Catalog()
    catalog.load(database, set(declared))
    found = {name: catalog.find(name) for name in declared}
    tables = [each for each in found.values() if isinstance(each, Table)]
    columns = _columns(database, tables)
    return {
        name: _relation(database, each, tuple(declared[name]), columns.get(each.oid, []))
        if isinstance(each, Table) else each
        for name, each in found.items()
    }  # fmt: skip


def oids(database: PostgresSession, names: Sequence[str]) -> dict[str, int]:
    """Return the oids of tables, by the names that operations give them; 0 if there is none."""
    asked = ",".join(f"({quoted(name)},{quoted(table(name))})" for name in names)
    rows = database.run(
        "SELECT name, pg_catalog.to_regclass(quoted)::oid::bigint"
        f" FROM (VALUES {asked}) AS a (name, quoted)"
    )
    return {name: oid or 0 for name, oid in rows}


#: A row of the answer to _COLUMNS: name, NOT NULL, has a default, its text, is an enumerated type,
#: in the first row of a table the columns of its unique indexes, and is computed from others.
_Column = tuple[str, bool, bool, str | None, bool, list[list[str]] | None, bool]


def _columns(database: PostgresSession, tables: Sequence[Table]) -> dict[int, list[_Column]]:
    if not tables:
        return {}
    table_oids = ",".join(str(each.oid) for each in tables)
    found: dict[int, list[_Column]] = {}
    for oid, *column in database.run(_COLUMNS.format(table_oids)):
        found.setdefault(oid, []).append((*column,))
    return found


def _relation(
    database: PostgresSession, found: Table, keys: tuple[str, ...], columns: Sequence[_Column]
) -> Relation:
    unique = frozenset(frozenset(names) for names in (columns[0][5] if columns else None) or ())
    return Relation(
        found.name, found.oid, keys, tuple(name for name, *_ in columns), found.columns,
        frozenset(name for name, not_null, *_ in columns if not_null),
        frozenset(name for name, not_null, default, *_ in columns if not_null and not default),
        _constants(database, found, columns),
        frozenset(name for name, _, _, _, label, *_ in columns if label),
        unique,
        frozenset(found.partial) - unique,
        found.always,
        frozenset(name for name, *_, generated in columns if generated),
    )  # fmt: skip


def _constants(
    database: PostgresSession, found: Table, columns: Sequence[_Column]
) -> dict[str, Any]:
    """Return the values of constant defaults; other defaults only the server can compute."""
    texts = {name: text for name, _, _, text, *_ in columns if text and _CONSTANT(text)}
    if not texts:
        return {}
    types = {name: found.columns[name] for name in texts}
    casts = [f"({text})::{types[n].domain or types[n].type}" for n, text in texts.items()]
    values = database.run(f"SELECT {', '.join(casts)}")[0]
    return {
        name: read_as(column, value)
        if column.base in (VARCHAR, BPCHAR) and not column.domain else value
        for (name, column), value in zip(types.items(), values, strict=True)
    }  # fmt: skip


_COLUMNS = """
SELECT a.attrelid::bigint, a.attname, a.attnotnull,
       coalesce(d.adbin, t.typdefaultbin) IS NOT NULL OR a.attidentity <> ''
       OR a.attgenerated <> '',
       CASE WHEN a.attgenerated = '' THEN
           coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid),
                    pg_catalog.pg_get_expr(t.typdefaultbin, 0)) END,
       t.typtype = 'e',
       CASE WHEN pg_catalog.row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) = 1 THEN
           (SELECT pg_catalog.jsonb_agg((
                   SELECT pg_catalog.jsonb_agg(k.attname) FROM pg_catalog.pg_attribute k
                    WHERE k.attrelid = i.indrelid AND k.attnum
                          OPERATOR(pg_catalog.=) ANY (i.indkey[0:i.indnkeyatts - 1])))
              FROM pg_catalog.pg_index i
             WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
               AND i.indpred IS NULL AND i.indexprs IS NULL) END,
       a.attgenerated <> ''
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid OPERATOR(pg_catalog.=) ANY ('{{{}}}'::oid[])
   AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""
