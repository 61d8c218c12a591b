"""The PostgreSQL schema `processor`: its tables and functions, how it is created and checked.

================ ===================================================================================
meta             one row: the versions of the schema (see below)
lane             one row per (buffer, lane): namespace, epoch and owner token (fence), counters, the
                 accept time up to which ledger rows were pruned, what was seen of the stream and
                 what Redis lost of it
ledger           one row per transaction: id, buffer, lane, entry, outcome (applied, dead,
                 discarded), payload hash, xid, committed_at
dead_letter      one row per (id, hash): everything needed to show, edit, retry or discard it, and
                 the request of an operator that the owner of the lane carries out
outbox           follow-ups of a transaction, written with its effect
version()        returns `meta.version`
fence_2(...)     locks the lane's row, compares epoch and token, counts; raises PR001
expect_2(...)    raises PR002 if a count differs from the expected one
isolate_2(...)   applies transactions one by one in subtransactions and returns the failures
================ ===================================================================================

The tables come from numbered `migrations`; `meta.newest` is the number of the last one that was
applied, and `meta.oldest` the oldest version whose releases work with the result. A release works
with a schema if its own VERSION is in that range, so releases of several versions run side by side
(rule 91). Release 0.1 demands that `meta.version` is 1: it stays 1 as long as `meta.oldest` is.

DESIGN. The text is generated from the constants that Python judges errors by, so that the functions
and `apply.verdict` cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from processor.connections.postgres_session import PostgresSession
from processor.errors import (
    EXPECT_STATE,
    FENCED_STATE,
    ONE_BY_ONE_STATE,
    DatabaseError,
    DatabaseUnavailable,
    RightsMissing,
    SchemaMissing,
)
from processor.ledger.migrations import m0001_tables, m0002_safe_functions
from processor.ledger.sqlstates import ENDS_ISOLATION

#: The version of the schema that this release needs.
VERSION = 2


def _filled(text: str, **values: str) -> str:
    # Not str.format: the text has braces of its own.
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


#: The SQL of each version, from 1.
MIGRATIONS = tuple(
    _filled(
        migration.TEXT, fenced=FENCED_STATE, expect=EXPECT_STATE, one_by_one=ONE_BY_ONE_STATE,
        ends_isolation=ENDS_ISOLATION,
    )
    for migration in (m0001_tables, m0002_safe_functions)
)  # fmt: skip

#: The whole schema, as `print schema` shows it. It may be executed again, and on an older schema.
DDL = "\n".join(MIGRATIONS)

ROLE = """\
-- The role of the running processor: no DDL, no superuser, only these rights.
CREATE ROLE processor LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
GRANT USAGE ON SCHEMA processor TO processor;
GRANT SELECT ON processor.meta TO processor;
GRANT SELECT, INSERT, UPDATE ON processor.lane, processor.dead_letter TO processor;
GRANT SELECT, INSERT, UPDATE, DELETE ON processor.ledger, processor.outbox TO processor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA processor TO processor;
-- and on each table that transactions write, for example:
-- GRANT SELECT, INSERT, UPDATE, DELETE ON orders, account TO processor;
"""


#: The privileges that a processor needs on its tables.
_PRIVILEGES = {
    "lane": "SELECT INSERT UPDATE", "ledger": "SELECT INSERT UPDATE DELETE",
    "dead_letter": "SELECT INSERT UPDATE", "outbox": "SELECT INSERT UPDATE DELETE",
}  # fmt: skip
_INSUFFICIENT_PRIVILEGE = "42501"
# Held by `create`: two processors with `database.init` that start together would otherwise collide
# in PostgreSQL's catalog.
_LOCK_KEY = 7310593858020254331


@dataclass(frozen=True, slots=True)
class Installed:
    """The range of versions that a schema serves (rule 91)."""

    oldest: int
    newest: int

    @property
    def serves(self) -> bool:
        """Whether this release works with the schema."""
        return self.oldest <= VERSION <= self.newest


# A schema of release 0.1 has no range, which is that of its version.
_INSTALLED = (
    "SELECT greatest((m.j OPERATOR(pg_catalog.->>) 'version')::integer,"
    " (m.j OPERATOR(pg_catalog.->>) 'oldest')::integer),"
    " greatest((m.j OPERATOR(pg_catalog.->>) 'version')::integer,"
    " (m.j OPERATOR(pg_catalog.->>) 'newest')::integer)"
    " FROM (SELECT pg_catalog.to_jsonb(t) AS j FROM processor.meta AS t) AS m"
)


def installed(session: PostgresSession) -> Installed | None:
    """Return what the database has of the schema; None if it has none.

    Raises DatabaseError, also if the role may not look.
    """
    if session.run("SELECT pg_catalog.to_regclass('processor.meta') IS NULL")[0][0]:
        return None
    rows = session.run(_INSTALLED)
    return Installed(*rows[0]) if rows else None


def check(session: PostgresSession) -> None:
    """Check that the schema exists and serves this release.

    Raises SchemaMissing, or RightsMissing if the role lacks privileges.
    """
    try:
        found = installed(session)
    except DatabaseError as error:
        if session.alive and not session.idle:
            session.run("ROLLBACK")
        refuse_rights(session, error)
        raise SchemaMissing(
            f"schema processor at {session.address} is not usable: {error}"
        ) from None
    if found is None:
        raise SchemaMissing(f"there is no schema processor at {session.address}")
    if not found.serves:
        raise _unserved(session, found)


def _unserved(session: PostgresSession, found: Installed) -> SchemaMissing:
    where = f"schema processor at {session.address}"
    if found.newest < VERSION:
        return SchemaMissing(
            f"{where} has version {found.newest}, this release needs {VERSION}",
            hint="run `processor init-db --upgrade` with a role that owns it; processors of the"
            " older release go on working meanwhile",
        )
    return SchemaMissing(
        f"{where} has version {found.newest}, this release has {VERSION} and the schema needs"
        f" {found.oldest} at least",
        hint="run a release that knows this schema",
    )


def check_rights(session: PostgresSession) -> None:
    """Check that the role has the privileges that a processor needs. Raises RightsMissing.

    Call it after `check`, which shows that the tables exist.
    """
    wanted = [(name, right) for name, rights in _PRIVILEGES.items() for right in rights.split()]
    asked = ", ".join(
        f"pg_catalog.has_table_privilege('processor.{n}', '{right}')" for n, right in wanted
    )
    granted = session.run(f"SELECT {asked}")[0]
    missing = {name for (name, _), has in zip(wanted, granted, strict=True) if not has}
    if missing:
        names = ", ".join(f"processor.{name}" for name in _PRIVILEGES if name in missing)
        raise RightsMissing(f"the role lacks privileges on {names} at {session.address}")


def refuse_rights(session: PostgresSession, error: DatabaseError) -> None:
    """Raise RightsMissing if `error` says that the role lacks privileges on the schema."""
    if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
        raise RightsMissing(
            f"the role lacks privileges on schema processor at {session.address}: {error}"
        ) from None


def missing(found: Installed | None) -> str:
    """Return the SQL of the migrations that a database lacks; "" if it lacks none."""
    return "\n".join(MIGRATIONS[0 if found is None else found.newest :])


def create(session: PostgresSession) -> None:
    """Create or upgrade the schema in one transaction; safe when several processes do it at once.

    Raises DatabaseUnavailable if PostgreSQL refuses, SchemaMissing if the schema belongs to a later
    release that this one does not work with.
    """
    try:
        session.run(f"BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({_LOCK_KEY})")
        session.run(f"{missing(installed(session))} COMMIT")
    except DatabaseError as error:
        if session.alive and not session.idle:
            session.run("ROLLBACK")
        raise _refused(session, error) from None


def _refused(session: PostgresSession, error: DatabaseError) -> DatabaseUnavailable:
    """Return the error of a failed `create`: which role, which database, and who can do it."""
    role, name, owner = session.run(
        "SELECT current_user, pg_catalog.current_database(),"
        " (SELECT pg_catalog.pg_get_userbyid(nspowner)"
        " FROM pg_catalog.pg_namespace WHERE nspname = 'processor')"
    )[0]
    verb = "create" if owner is None else "upgrade"
    where = f"schema processor in database {name} at {session.address}"
    if error.sqlstate != _INSUFFICIENT_PRIVILEGE:
        return DatabaseUnavailable(f"role {role} cannot {verb} {where}: {error}")
    capable = "a role that may create schemas" if owner is None else f"its owner, {owner}"
    return DatabaseUnavailable(
        f"role {role} may not {verb} {where}: {error}",
        hint=f"run `processor init-db` with {capable} (see PROCESSOR_ADMIN_DSN)",
    )
