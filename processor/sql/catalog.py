"""The tables that transactions write: columns, types and constraints from PostgreSQL's catalog.

A table is looked up once per session. Each value is checked against its column's type and rendered
in it, so that prepared and plain runs mean the same (rule 17). Each batch proves that its tables
are still as they were looked up (rule 17).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from processor.connections.postgres_session import PostgresSession, Row
from processor.connections.sql_literals import quoted, table
from processor.errors import DatabaseError, InvalidTransaction
from processor.sql import table_versions
from processor.sql.table_versions import Watch
from processor.transaction.values import identifier


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its type.

    `type` is the name for casts, `base` and `modifier` are the oid and modifier of the base type,
    `element` is the oid of an array's elements or 0. `domain` is the domain over the base type, if
    any. `deterministic` is true if equal texts have equal bytes in the column's collation.
    `builtin` is true if PostgreSQL itself compares its values, and not an extension.
    """

    name: str
    type: str
    base: int
    modifier: int
    element: int
    domain: str = ""
    deterministic: bool = True
    builtin: bool = True

    @property
    def equals(self) -> str:
        """The equality operator, which another user's operator must not replace (rule 92)."""
        return "OPERATOR(pg_catalog.=)" if self.builtin else "="


@dataclass(frozen=True, slots=True)
class Refused:
    """A table that PostgreSQL refused to look up, with the SQLSTATE of the refusal."""

    sqlstate: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table that exists: its columns, and the facts by which `folding` decides.

    `unobserved` is false if a trigger, rule, policy, partition, generated column or computed index
    could see single rows or intermediate values. `unique` are the column sets of unique indexes,
    `constrained` the columns in checks, unique and exclusion indexes or referenced keys,
    `references` the oids of the tables that its foreign keys refer to. `has_sequence` is true if a
    sequence fills a column. `partial` are the column sets of partial unique indexes, with the SQL
    that implies the predicates of all of them. `always` are the columns that are GENERATED ALWAYS
    AS IDENTITY.
    """

    name: str
    columns: dict[str, Column]
    oid: int = 0
    unobserved: bool = False
    unique: tuple[frozenset[str], ...] = ()
    constrained: frozenset[str] = frozenset()
    references: frozenset[int] = frozenset()
    has_sequence: bool = False
    partial: Mapping[frozenset[str], str] = field(default_factory=dict)
    always: frozenset[str] = frozenset()


# Classes of SQLSTATEs with which PostgreSQL refuses a name, or a privilege on it.
_REFUSES_NAME = ("42", "0A", "3F", "22")


class Catalog:
    """The tables that were looked up on one session."""

    def __init__(self) -> None:
        self._tables: dict[str, Table | Refused | None] = {}
        self._versions: dict[str, str | None] = {}
        self._watches: dict[str, Watch] = {}
        self._number = 0
        self._generation = -1

    def has(self, name: str) -> bool:
        """Return whether the table was looked up, with whatever result."""
        return name in self._tables

    def find(self, name: str) -> Table | Refused | None:
        """Return the table, or None if it does not exist. Raises KeyError if not looked up."""
        return self._tables[name]

    def forget(self) -> None:
        """Forget all tables, so that they are looked up again: they may have changed."""
        self._tables.clear()
        self._versions.clear()
        self._watches.clear()

    def proof(self, names: Iterable[str]) -> str:
        """Return SQL that fails with CHANGED_STATE if these tables are not as looked up."""
        return table_versions.proof(self._known(names))

    def watches(self, names: Iterable[str]) -> list[Watch]:
        """Return a watch for each of these tables. Their names are never used again."""
        for name in names:
            if name not in self._watches:
                self._number += 1
                self._watches[name] = Watch(f"processor_t{self._number}", name)
        return [self._watches[name] for name in names]

    def unprepare(self) -> None:
        """Record that the server has no prepared statement any more."""
        for watch in self._watches.values():
            watch.prepared = False

    def is_current(self, session: PostgresSession, names: set[str]) -> bool:
        """Return whether these tables are as looked up. The session must be in no transaction.

        A table that PostgreSQL refused to look up counts as current.
        """
        known = self._known(names)
        return not known or not session.run(table_versions.changed(known))

    def _known(self, names: Iterable[str]) -> dict[str, str | None]:
        return {name: self._versions[name] for name in sorted(names) if name in self._versions}

    def load(self, session: PostgresSession, names: set[str]) -> None:
        """Look up the tables that are missing, together. The session must be in no transaction."""
        if self._generation != session.generation:
            self.forget()
            self._generation = session.generation
        missing = sorted(name for name in names if name not in self._tables)
        # PostgreSQL refuses the whole query if one name is malformed.
        self._tables.update((name, None) for name in missing if not _is_name(name))
        missing = [name for name in missing if name not in self._tables]
        if not missing:
            return
        try:
            self._look_up(session, missing)
        except DatabaseError as error:
            if error.sqlstate[:2] not in _REFUSES_NAME:
                raise
            if len(missing) == 1:
                self._tables[missing[0]] = Refused(error.sqlstate)
            else:
                # A schema that the role may not use fails the query for all of them.
                for name in missing:
                    self.load(session, {name})

    def _look_up(self, session: PostgresSession, names: list[str]) -> None:
        # First, so that a table that changes in between has a later version than its facts say.
        versions: dict[str, str | None] = dict(session.run(table_versions.look_up(names)))
        asked = ",".join(f"({quoted(n)},{quoted(table(n))})" for n in names)
        found: dict[str, dict[str, Column]] = {}
        for name, column, *type_ in session.run(_COLUMNS.format(asked)):
            found.setdefault(name, {})[column] = Column(column, *type_)
        facts = {row[0]: row[1:] for row in session.run(_FACTS.format(asked))}
        for name in names:
            self._tables[name] = _table(name, found[name], facts[name]) if name in found else None
            self._versions[name] = versions[name]


def _is_name(name: str) -> bool:
    try:
        return bool(identifier("table", name))
    except InvalidTransaction:
        return False


def _table(name: str, columns: dict[str, Column], facts: Row) -> Table:
    oid, unobserved, unique, constrained, references, has_sequence, partial, always = facts
    return Table(
        name, columns, oid, unobserved, tuple(frozenset(names) for names in unique or ()),
        frozenset(constrained or ()), frozenset(references or ()), bool(has_sequence),
        _predicates(partial or ()), frozenset(always or ()),
    )  # fmt: skip


def _predicates(partial: Iterable[tuple[list[str], str]]) -> dict[frozenset[str], str]:
    found: dict[frozenset[str], list[str]] = {}
    for names, predicate in partial:
        found.setdefault(frozenset(names), []).append(f"({predicate})")
    return {names: " AND ".join(predicates) for names, predicates in found.items()}


# Casts name the base type of a domain: a cast to the domain would silently truncate a value that is
# too long for it, while the assignment to the column checks the value.
# format_type with -1 returns names without a length of their own (bpchar, not character(1)).
_COLUMNS = """
WITH RECURSIVE asked (name, quoted) AS (VALUES {}),
relations AS (
    -- A search_path may lead to our own schema, which transactions must not write to.
    SELECT name, oid FROM (SELECT name, pg_catalog.to_regclass(quoted)::oid AS oid FROM asked) AS a
     WHERE NOT EXISTS (
           SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
                    ON n.oid = c.relnamespace
            WHERE c.oid = a.oid AND n.nspname = 'processor')
), base AS (
    SELECT r.name, a.attname, a.attnum, pg_catalog.format_type(a.atttypid, -1) AS domain,
           a.atttypid AS oid, a.atttypmod AS modifier, a.attcollation AS collation, 0 AS depth
      FROM relations r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
     WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.name, b.attname, b.attnum, b.domain, t.typbasetype, t.typtypmod, b.collation,
           b.depth + 1
      FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid WHERE t.typtype = 'd'
)
SELECT b.name, b.attname, pg_catalog.format_type(b.oid, -1), b.oid::bigint, b.modifier,
       CASE WHEN t.typcategory = 'A' THEN t.typelem::bigint ELSE 0 END,
       CASE WHEN b.depth > 0 THEN b.domain ELSE '' END, coalesce(l.collisdeterministic, true),
       b.oid::bigint < 16384 OR t.typcategory = 'A' OR t.typtype IN ('e', 'r', 'm', 'c')
  FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid
       LEFT JOIN pg_catalog.pg_collation l ON l.oid = b.collation
 WHERE t.typtype <> 'd'
 ORDER BY b.name, b.attnum
"""

_FACTS = """
WITH asked (name, quoted) AS (VALUES {})
SELECT a.name, c.oid::bigint,
       c.relkind = 'r' AND NOT c.relhasrules AND NOT c.relrowsecurity AND NOT c.relispartition
       AND NOT c.relhassubclass
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g
                        WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute g
                        WHERE g.attrelid = c.oid AND g.attgenerated <> '')
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid
                          AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
       -- A function of the user's own may read other rows, in a default or in a check. The
       -- oids of catalogs are constant: pg_attrdef 2604, pg_constraint 2606, pg_proc 1255.
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attrdef g JOIN pg_catalog.pg_depend p
                          ON p.classid = '2604' AND p.objid = g.oid
                       WHERE g.adrelid = c.oid AND p.refclassid = '1255')
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint n LEFT JOIN pg_catalog.pg_depend p
                          ON p.classid = '2606' AND p.objid = n.oid
                         AND p.refclassid = '1255'
                       WHERE n.conrelid = c.oid AND n.contype = 'c'
                         AND (p.objid IS NOT NULL OR n.conkey IS NULL OR 0 = ANY (n.conkey))),
       (SELECT pg_catalog.jsonb_agg((SELECT pg_catalog.jsonb_agg(attname)
                                       FROM pg_catalog.pg_attribute
                           WHERE attrelid = c.oid AND attnum = ANY (i.indkey::int2[])))
          FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
           AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = i.indnatts),
       (SELECT pg_catalog.jsonb_agg(DISTINCT attname) FROM pg_catalog.pg_attribute g
         WHERE g.attrelid = c.oid AND (
               EXISTS (SELECT FROM pg_catalog.pg_constraint n WHERE n.conrelid = c.oid
                          AND n.contype IN ('c', 'u', 'p', 'x', 'f') AND g.attnum = ANY (n.conkey))
            OR EXISTS (SELECT FROM pg_catalog.pg_constraint n WHERE n.confrelid = c.oid
                          AND g.attnum = ANY (n.confkey))
            OR EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique
                          AND g.attnum = ANY (i.indkey::int2[])))),
       (SELECT pg_catalog.jsonb_agg(n.confrelid::bigint) FROM pg_catalog.pg_constraint n
         WHERE n.conrelid = c.oid AND n.contype = 'f'),
       EXISTS (SELECT FROM pg_catalog.pg_attribute g LEFT JOIN pg_catalog.pg_attrdef d
                   ON d.adrelid = g.attrelid AND d.adnum = g.attnum
                WHERE g.attrelid = c.oid
                  AND (g.attidentity <> ''
                       OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval%')),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                   (SELECT pg_catalog.jsonb_agg(g.attname) FROM pg_catalog.pg_attribute g
                     WHERE g.attrelid = c.oid
                       AND g.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])),
                   pg_catalog.pg_get_expr(i.indpred, c.oid)))
          FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
           AND i.indpred IS NOT NULL AND i.indexprs IS NULL),
       (SELECT pg_catalog.jsonb_agg(g.attname) FROM pg_catalog.pg_attribute g
         WHERE g.attrelid = c.oid AND g.attidentity = 'a')
  FROM asked a JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(a.quoted)::oid
"""
