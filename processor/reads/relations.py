"""A table as those see it who merge pending writes into its rows: its columns, its key, its rules.

`catalog` tells of types; this adds what decides whether a row can be written - columns that refuse
NULL, defaults that are constants - and whether two values of a column are equal where Python can
say so.
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
#: Types of which equal values have equal marks (`footprint`), whatever form they are sent in: no
#: name, which is cut off silently, no oid, of which -1 is 4294967295.
_MARKED = frozenset({*WHOLE, TEXT, VARCHAR, BPCHAR, UUID, NUMERIC})
#: A default that is the same for every row and needs no function.
_CONSTANT = re.compile(r"-?[0-9.]+|true|false|'(?:[^']|'')*'::[a-z][a-z0-9_ ]*(?:\[\])?").fullmatch


@dataclass(frozen=True, slots=True)
class Relation:
    """A declared table on one server.

    `names` are its columns in order; `needed` those that refuse NULL, `open` those of them that
    nothing fills; `filled` what constant defaults give; `labels` the columns of an enumerated type;
    `unique` the sets of columns that tell rows apart.
    """

    name: str
    oid: int
    keys: tuple[str, ...]
    names: tuple[str, ...]
    columns: Mapping[str, Column]
    needed: frozenset[str]
    open: frozenset[str]
    filled: Mapping[str, Any]
    labels: frozenset[str]
    unique: frozenset[frozenset[str]]

    @property
    def marked(self) -> bool:
        """Whether a row may be found by its mark."""
        return all(self._among(column, _MARKED) for column in self.keys)

    def comparable(self, column: str) -> bool:
        """Whether Python can say that two values of a column are equal."""
        return self._among(column, _EQUAL)

    def _among(self, name: str, bases: frozenset[int]) -> bool:
        column = self.columns[name]
        if not column.deterministic or column.element:
            return False
        return column.base in bases or name in self.labels


def load(
    database: PostgresSession, declared: Mapping[str, Sequence[str]]
) -> dict[str, Relation | Refused | None]:
    """The declared tables on this server; None for those that are not there.

    Raises DatabaseError and DatabaseUnavailable.
    """
    catalog = Catalog()
    catalog.load(database, set(declared))
    found = {name: catalog.find(name) for name in declared}
    tables = [each for each in found.values() if isinstance(each, Table)]
    rules = _rules(database, tables)
    return {
        name: _relation(database, each, tuple(declared[name]), rules.get(each.oid, []))
        if isinstance(each, Table) else each
        for name, each in found.items()
    }  # fmt: skip


def same(database: PostgresSession, names: Sequence[str]) -> dict[str, int]:
    """The oids of tables, by the names that operations gave them."""
    asked = ",".join(f"({quoted(name)},{quoted(table(name))})" for name in names)
    rows = database.run(
        f"SELECT name, to_regclass(quoted)::oid::bigint FROM (VALUES {asked}) AS a (name, quoted)"
    )
    return {name: oid or 0 for name, oid in rows}


_Rule = tuple[str, bool, bool, str | None, bool, list[list[str]] | None]


def _rules(database: PostgresSession, tables: Sequence[Table]) -> dict[int, list[_Rule]]:
    if not tables:
        return {}
    oids = ",".join(str(each.oid) for each in tables)
    found: dict[int, list[_Rule]] = {}
    for oid, *rule in database.run(_RULES.format(oids)):
        found.setdefault(oid, []).append((*rule,))
    return found


def _relation(
    database: PostgresSession, found: Table, keys: tuple[str, ...], rules: Sequence[_Rule]
) -> Relation:
    unique = frozenset(frozenset(columns) for columns in (rules[0][5] if rules else None) or ())
    return Relation(
        found.name, found.oid, keys, tuple(name for name, *_ in rules), found.columns,
        frozenset(name for name, needed, *_ in rules if needed),
        frozenset(name for name, needed, filled, *_ in rules if needed and not filled),
        _constants(database, found, rules),
        frozenset(name for name, _, _, _, label, _ in rules if label),
        unique,
    )  # fmt: skip


def _constants(database: PostgresSession, found: Table, rules: Sequence[_Rule]) -> dict[str, Any]:
    """What defaults that are constants give; others are the server's to know."""
    texts = {name: text for name, _, _, text, *_ in rules if text and _CONSTANT(text)}
    if not texts:
        return {}
    columns = {name: found.columns[name] for name in texts}
    casts = [f"({text})::{columns[n].domain or columns[n].type}" for n, text in texts.items()]
    values = database.run(f"SELECT {', '.join(casts)}")[0]
    return {
        name: read_as(column, value)
        if column.base in (VARCHAR, BPCHAR) and not column.domain else value
        for (name, column), value in zip(columns.items(), values, strict=True)
    }  # fmt: skip


_RULES = """
SELECT a.attrelid::bigint, a.attname, a.attnotnull,
       coalesce(d.adbin, t.typdefaultbin) IS NOT NULL OR a.attidentity <> ''
       OR a.attgenerated <> '',
       CASE WHEN a.attgenerated = '' THEN
           coalesce(pg_get_expr(d.adbin, d.adrelid), pg_get_expr(t.typdefaultbin, 0)) END,
       t.typtype = 'e',
       CASE WHEN row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) = 1 THEN
           (SELECT jsonb_agg((SELECT jsonb_agg(k.attname) FROM pg_attribute k
                               WHERE k.attrelid = i.indrelid
                                 AND k.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])))
              FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
               AND i.indpred IS NULL AND i.indexprs IS NULL) END
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid IN ({}) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
"""
