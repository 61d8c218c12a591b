"""What PostgreSQL's catalog says of the tables that transactions write: columns and their types.

Read once per table and session; a value is checked against and rendered in its column's type, so
that prepared and plain runs mean the same (rule 17). Forgotten after an error that names may cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from processor.database import Database
from processor.literal import quoted, table


@dataclass(frozen=True, slots=True)
class Column:
    """A column's type: name for casts, oid and modifier of its base type, oid of its elements."""

    name: str
    type: str
    base: int
    modifier: int
    element: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table that exists; `foldable` if no trigger, rule or policy could see single rows."""

    name: str
    columns: dict[str, Column]
    foldable: bool


class Catalog:
    """The tables that this session has met."""

    def __init__(self) -> None:
        self._tables: dict[str, Table | None] = {}
        self._generation = -1

    def known(self, name: str) -> bool:
        """Whether the table was looked up already."""
        return name in self._tables

    def find(self, name: str) -> Table | None:
        """The table, or None if it does not exist; it must be `known`."""
        return self._tables[name]

    def forget(self) -> None:
        """Look everything up anew: names may have changed."""
        self._tables.clear()

    def load(self, database: Database, names: set[str]) -> None:
        """Look up tables that are not known, in one call, on a session in no transaction."""
        if self._generation != database.generation:
            self.forget()
            self._generation = database.generation
        missing = sorted(name for name in names if name not in self._tables)
        if not missing:
            return
        rows = database.run(_QUERY.format(",".join(f"({quoted(n)},{quoted(table(n))})"
                                                   for n in missing)))  # fmt: skip
        found: dict[str, dict[str, Column]] = {}
        foldable: dict[str, bool] = {}
        for name, column, type_name, base, modifier, element, plain in rows:
            found.setdefault(name, {})[column] = Column(column, type_name, base, modifier, element)
            foldable[name] = plain
        for name in missing:
            columns = found.get(name)
            self._tables[name] = Table(name, columns, foldable[name]) if columns else None


# A domain is followed to its base type for the check of values; casts name the domain itself.
# format_type with -1 gives names that bring no length of their own (bpchar, not character(1)).
_QUERY = """
WITH RECURSIVE asked (name, quoted) AS (VALUES {}),
relations AS (
    SELECT name, to_regclass(quoted) AS oid FROM asked
), base AS (
    SELECT r.name, a.attname, a.attnum, format_type(a.atttypid, -1) AS type, a.atttypid AS oid,
           a.atttypmod AS modifier, r.oid AS relation
      FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid
     WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.name, b.attname, b.attnum, b.type, t.typbasetype, t.typtypmod, b.relation
      FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd'
)
SELECT b.name, b.attname, b.type, b.oid::bigint::int8, b.modifier,
       CASE WHEN t.typcategory = 'A' THEN t.typelem::bigint ELSE 0 END,
       c.relkind = 'r' AND NOT c.relhasrules AND NOT c.relrowsecurity AND NOT c.relispartition
       AND NOT c.relhassubclass AND NOT EXISTS (
           SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
  FROM base b JOIN pg_type t ON t.oid = b.oid JOIN pg_class c ON c.oid = b.relation
 WHERE t.typtype <> 'd'
 ORDER BY b.name, b.attnum
"""
