"""The PostgreSQL schema `processor`: its tables and functions, how it is created and checked.

================ ===================================================================================
meta             one row: the version of this schema
lane             one row per (buffer, lane): epoch and owner token (fence), counters, the accept
                 time up to which ledger rows were pruned
ledger           one row per transaction: id, buffer, lane, entry, outcome (applied, dead,
                 discarded), payload hash, xid, committed_at
dead_letter      one row per (id, hash): everything needed to show, edit, retry or discard it, and
                 the request of an operator that the owner of the lane carries out
outbox           follow-ups of a transaction, written with its effect
version()        returns the version of this schema
fence(...)       locks the lane's row, compares epoch and token, counts; raises PR001
expect(...)      raises PR002 if a count differs from the expected one
isolate(...)     applies transactions one by one in subtransactions and returns the failures
================ ===================================================================================

DESIGN. The text is generated from the constants that Python judges errors by, so that the functions
and `apply.verdict` cannot disagree.
"""

from __future__ import annotations

from processor.connections.postgres_session import PostgresSession
from processor.errors import (
    EXPECT_STATE,
    FENCED_STATE,
    LATER_SCHEMA_STATE,
    ONE_BY_ONE_STATE,
    DatabaseError,
    DatabaseUnavailable,
    RightsMissing,
    SchemaMissing,
)
from processor.ledger.sqlstates import ENDS_ISOLATION

VERSION = 1

_DDL = """\
CREATE SCHEMA IF NOT EXISTS processor;

CREATE TABLE IF NOT EXISTS processor.meta (
    version integer NOT NULL,
    one boolean PRIMARY KEY DEFAULT true CHECK (one)
);

CREATE TABLE IF NOT EXISTS processor.lane (
    buffer uuid NOT NULL,
    lane text NOT NULL,
    site text NOT NULL DEFAULT '',
    instance text NOT NULL DEFAULT '',
    epoch bigint NOT NULL DEFAULT 0,
    token uuid,
    applied bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    pruned_to timestamptz,
    last_entry text,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (buffer, lane)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS processor.ledger (
    id uuid PRIMARY KEY,
    buffer uuid NOT NULL,
    lane text NOT NULL,
    entry text NOT NULL,
    outcome text NOT NULL,
    hash uuid NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    committed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS ledger_committed_at ON processor.ledger USING brin (committed_at);

CREATE TABLE IF NOT EXISTS processor.dead_letter (
    id uuid NOT NULL,
    hash uuid NOT NULL,
    buffer uuid NOT NULL,
    lane text NOT NULL,
    entry text NOT NULL,
    keys text[] NOT NULL DEFAULT '{}',
    body bytea NOT NULL,
    reason text NOT NULL,
    sqlstate text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    attempts integer NOT NULL DEFAULT 1,
    holds boolean NOT NULL DEFAULT false,
    trace text,
    died_at timestamptz NOT NULL DEFAULT now(),
    request text CHECK (request IN ('retry', 'discard', 'edit')),
    requested_at timestamptz,
    requested_by text,
    edited bytea,
    outcome text NOT NULL DEFAULT 'dead' CHECK (outcome IN ('dead', 'applied', 'discarded')),
    resolved_at timestamptz,
    PRIMARY KEY (id, hash)
);
CREATE INDEX IF NOT EXISTS dead_letter_request ON processor.dead_letter (buffer, lane)
    WHERE request IS NOT NULL;
CREATE INDEX IF NOT EXISTS dead_letter_open ON processor.dead_letter (buffer, lane, died_at)
    WHERE outcome = 'dead';

CREATE TABLE IF NOT EXISTS processor.outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent uuid NOT NULL,
    queue text NOT NULL,
    body bytea NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);

CREATE OR REPLACE FUNCTION processor.version() RETURNS integer LANGUAGE sql STABLE AS
    'SELECT version FROM processor.meta';

CREATE OR REPLACE FUNCTION processor.fence(
    in_buffer uuid, in_lane text, in_epoch bigint, in_token uuid,
    in_applied integer, in_dead integer, in_last text) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
    UPDATE processor.lane
       SET applied = applied + in_applied, dead = dead + in_dead,
           last_entry = CASE WHEN last_entry IS NULL OR string_to_array(in_last, '-')::numeric[]
                                  > string_to_array(last_entry, '-')::numeric[]
                             THEN coalesce(in_last, last_entry) ELSE last_entry END,
           seen_at = clock_timestamp()
     WHERE buffer = in_buffer AND lane = in_lane AND epoch = in_epoch AND token = in_token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'fenced: another processor owns lane %', in_lane USING ERRCODE = '{fenced}';
    END IF;
END $function$;

CREATE OR REPLACE FUNCTION processor.expect(met bigint, expected bigint) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
    IF met <> expected THEN
        RAISE EXCEPTION 'expected % rows, met %', expected, met USING ERRCODE = '{expect}';
    END IF;
END $function$;

CREATE OR REPLACE FUNCTION processor.isolate(
    in_buffer uuid, in_lane text, ids uuid[], quick text[], plain text[],
    later integer[], earlier integer[], width integer) RETURNS jsonb
LANGUAGE plpgsql AS $function$
DECLARE
    failures jsonb := '[]';
    bad integer[] := '{}';
    first integer := 1;
    last integer;
    k integer;
    state text; message text; more text; tab text; col text; con text;
BEGIN
    WHILE first <= cardinality(plain) LOOP
        last := least(first + width - 1, cardinality(plain));
        BEGIN
            -- Once something failed, a group may hold a follower of it: one by one from the first
            -- group that has any.
            IF width < 2 OR EXISTS (SELECT FROM unnest(later, earlier) AS pair (l, e)
                                     WHERE l BETWEEN first AND last AND e = ANY (bad)) THEN
                RAISE EXCEPTION USING ERRCODE = '{one_by_one}';
            END IF;
            EXECUTE quick[(first - 1) / width + 1];
            SET CONSTRAINTS ALL IMMEDIATE;
            SET CONSTRAINTS ALL DEFERRED;
        EXCEPTION WHEN OTHERS THEN
            IF sqlstate ~ '{ends_isolation}' THEN RAISE; END IF;
            FOR k IN first..last LOOP
                IF EXISTS (SELECT FROM unnest(later, earlier) AS pair (l, e)
                            WHERE l = k AND e = ANY (bad)) THEN
                    bad := bad || k;
                    failures := failures || jsonb_build_object('at', k - 1, 'held', true);
                    CONTINUE;
                END IF;
                BEGIN
                    EXECUTE plain[k];
                    SET CONSTRAINTS ALL IMMEDIATE;
                    SET CONSTRAINTS ALL DEFERRED;
                EXCEPTION WHEN OTHERS THEN
                    IF sqlstate ~ '{ends_isolation}' THEN RAISE; END IF;
                    GET STACKED DIAGNOSTICS
                        state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                        more = PG_EXCEPTION_DETAIL, tab = TABLE_NAME, col = COLUMN_NAME,
                        con = CONSTRAINT_NAME;
                    bad := bad || k;
                    failures := failures || jsonb_build_object(
                        'at', k - 1, 'sqlstate', state,
                        'detail', left(message || E'\\n' || more, 2000),
                        'table', tab, 'column', col, 'constraint', con);
                END;
            END LOOP;
        END;
        first := last + 1;
    END LOOP;
    DELETE FROM processor.ledger WHERE id IN (SELECT ids[b] FROM unnest(bad) AS b);
    UPDATE processor.lane SET applied = applied - cardinality(bad)
     WHERE buffer = in_buffer AND lane = in_lane;
    RETURN failures;
END $function$;

INSERT INTO processor.meta (version) VALUES ({version})
    ON CONFLICT (one) DO UPDATE SET version = excluded.version;
"""


def _filled(text: str, **values: str) -> str:
    # Not str.format: the text has braces of its own.
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


#: What `init-db` executes and `print schema` shows.
DDL = _filled(
    _DDL, version=str(VERSION), fenced=FENCED_STATE, expect=EXPECT_STATE,
    one_by_one=ONE_BY_ONE_STATE, ends_isolation=ENDS_ISOLATION,
)  # fmt: skip

# `create` begins with this: an older release must not replace the functions of a later one while
# processors of that release use them.
_NOT_LATER = _filled("""\
DO $block$ BEGIN
    IF to_regclass('processor.meta') IS NOT NULL THEN
        IF EXISTS (SELECT FROM processor.meta WHERE version > {version}) THEN
            RAISE EXCEPTION 'the schema is of a later release' USING ERRCODE = '{later}';
        END IF;
    END IF;
END $block$;
""", version=str(VERSION), later=LATER_SCHEMA_STATE)

ROLE = """\
-- The role of the running processor: no DDL, no superuser, only these rights.
CREATE ROLE processor LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
GRANT USAGE ON SCHEMA processor TO processor;
GRANT SELECT ON processor.meta TO processor;
GRANT SELECT, INSERT, UPDATE ON processor.lane TO processor;
GRANT SELECT, INSERT, UPDATE, DELETE ON processor.ledger, processor.dead_letter, processor.outbox
    TO processor;
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


def check(session: PostgresSession) -> None:
    """Check that the schema exists and has this release's version.

    Raises SchemaMissing, or RightsMissing if the role lacks privileges.
    """
    try:
        rows = session.run("SELECT processor.version()")
    except DatabaseError as error:
        if session.alive and not session.idle:
            session.run("ROLLBACK")
        refuse_rights(session, error)
        raise SchemaMissing(
            f"schema processor at {session.address} is not usable: {error}"
        ) from None
    found = rows[0][0]
    if found != VERSION:
        raise SchemaMissing(
            f"schema processor at {session.address} has version {found}, this release needs"
            f" {VERSION}",
            hint="run the release that created it" if found > VERSION else "",
        )


def check_rights(session: PostgresSession) -> None:
    """Check that the role has the privileges that a processor needs. Raises RightsMissing.

    Call it after `check`, which shows that the tables exist.
    """
    wanted = [(name, right) for name, rights in _PRIVILEGES.items() for right in rights.split()]
    asked = ", ".join(f"has_table_privilege('processor.{n}', '{right}')" for n, right in wanted)
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


def create(session: PostgresSession) -> None:
    """Create or upgrade the schema in one transaction; safe when several processes do it at once.

    Raises DatabaseUnavailable if PostgreSQL refuses, SchemaMissing if the schema belongs to a later
    release.
    """
    try:
        session.run(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK_KEY}); {_NOT_LATER} {DDL} COMMIT")
    except DatabaseError as error:
        if session.alive and not session.idle:
            session.run("ROLLBACK")
        if error.sqlstate == LATER_SCHEMA_STATE:
            check(session)
        raise _refused(session, error) from None


def _refused(session: PostgresSession, error: DatabaseError) -> DatabaseUnavailable:
    """Return the error of a failed `create`: which role, which database, and who can do it."""
    role, name, owner = session.run(
        "SELECT current_user, current_database(), (SELECT pg_get_userbyid(nspowner)"
        " FROM pg_namespace WHERE nspname = 'processor')"
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
