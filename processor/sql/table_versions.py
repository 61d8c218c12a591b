"""The version of a table: what changes whenever a transaction would be rendered in another way.

A version is made from the catalog rows behind the facts of `catalog`: the columns, constraints,
indexes and triggers of a table, and the flags of the table itself. PostgreSQL replaces a catalog
row when it changes, so the number of rows and the sum of their xmin differ afterwards. What does
not matter here, such as TRUNCATE, GRANT or ANALYZE, leaves the version as it is.

DESIGN. A batch ends with a proof, inside its transaction. By then its operations have locked their
tables against ALTER TABLE and CREATE TRIGGER, so that nothing can change between the proof and the
commit. `proof` compares the versions, which takes PostgreSQL longer than to apply a transaction. So
a batch that compared them leaves a `Watch` behind for each table, and the next ones ask that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from processor.connections.sql_literals import quoted, table

#: The SQLSTATE of a proof that fails: undefined_object. No function of our own raises it, because
#: the schema of an earlier release has none. Whoever meets it compares the versions again.
CHANGED_STATE = "42704"

#: Sets the time zone; the usual one is that of `connections.session_settings`.
_ZONE = "SELECT pg_catalog.set_config('TimeZone', '{}', true);"


def _rows(catalog: str, condition: str) -> str:
    """Return SQL for the number of rows of a catalog and the sum of their xmin."""
    return (
        "(SELECT pg_catalog.concat(pg_catalog.count(*), '+',"
        " pg_catalog.sum(x.xmin::pg_catalog.text::pg_catalog.int8))"
        f" FROM pg_catalog.{catalog} x WHERE {condition})"
    )


# A second trigger, rule or child changes none of the flags. It needs not: from the first one on
# nothing is folded. Every operator has the very types of its arguments, so that no other operator
# of the same name can be nearer to them.
_VERSION = f"""(SELECT pg_catalog.concat_ws(' ', c.oid, c.relkind, c.relhasrules, c.relrowsecurity,
 c.relispartition, c.relhassubclass, {_rows("pg_attribute", "x.attrelid = c.oid AND x.attnum > 0")},
 {_rows("pg_constraint", "x.conrelid = c.oid")}, {_rows("pg_index", "x.indrelid = c.oid")},
 {_rows("pg_trigger", "x.tgrelid = c.oid")}) FROM pg_catalog.pg_class c
 WHERE c.oid = pg_catalog.to_regclass(a.quoted)::pg_catalog.oid)"""

_CHANGED = (
    "SELECT a.quoted FROM unnest({}, {}) AS a (quoted, known)"
    f" WHERE a.known IS DISTINCT FROM {_VERSION}"
)
_PROOF = (
    f"SELECT CASE WHEN EXISTS ({_CHANGED})"
    " THEN pg_catalog.current_setting('processor.tables_changed') END"
)


class Watch:
    """A prepared statement that fails with CHANGED_STATE once its table may have changed.

    PostgreSQL analyses a prepared statement again if anything about a relation that it names has
    changed, and then reads its constants again. So a time without a zone is prepared while the
    session has a time zone of its own: once it is midnight in the usual zone, the statement was
    analysed again. ANALYZE or TRUNCATE are reason enough, so that the versions are compared then. A
    new table that comes before this one in the search_path is not, so the name is resolved too.
    """

    __slots__ = ("execute", "prepare", "prepared")

    def __init__(self, name: str, target: str) -> None:
        relation = quoted(table(target))
        self.execute = f"EXECUTE {name};"
        self.prepare = (
            f"PREPARE {name} AS SELECT CASE WHEN '2000-01-01'::pg_catalog.timestamptz"
            " OPERATOR(pg_catalog.=) '2000-01-01 00:00Z'::pg_catalog.timestamptz"
            f" OR {relation}::pg_catalog.regclass::pg_catalog.oid IS DISTINCT FROM"
            f" pg_catalog.to_regclass({relation})::pg_catalog.oid"
            " THEN pg_catalog.current_setting('processor.tables_changed') END;"
        )
        #: Whether the server has it.
        self.prepared = False


def watched(watches: Iterable[Watch]) -> str:
    """Return SQL that prepares the watches, in the transaction of a proof and behind it."""
    prepare = "".join(watch.prepare for watch in watches)
    return _ZONE.format("<watch>-00:01") + prepare + _ZONE.format("UTC")


def look_up(names: list[str]) -> str:
    """Return SQL for the version of each table; NULL for a table that does not exist."""
    asked = ",".join(f"({quoted(n)},{quoted(table(n))})" for n in names)
    return f"SELECT a.name, {_VERSION} FROM (VALUES {asked}) AS a (name, quoted)"


def proof(versions: Mapping[str, str | None]) -> str:
    """Return SQL that fails with CHANGED_STATE unless the tables have these versions."""
    return f"{_PROOF.format(*_arrays(versions))};" if versions else ""


def changed(versions: Mapping[str, str | None]) -> str:
    """Return SQL that returns a row for each table that has another version."""
    return _CHANGED.format(*_arrays(versions))


def _arrays(versions: Mapping[str, str | None]) -> tuple[str, str]:
    names = ",".join(quoted(table(name)) for name in versions)
    known = ",".join("NULL" if v is None else quoted(v) for v in versions.values())
    return f"ARRAY[{names}]::pg_catalog.text[]", f"ARRAY[{known}]::pg_catalog.text[]"
