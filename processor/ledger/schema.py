"""The PostgreSQL schema `processor`: what is in it, how it is made, whether it is there.

================ ===================================================================================
meta             one row: version of this schema
lane             one row per (buffer, lane): epoch and owner token (fence), counters, the accept
                 mark up to which ledger rows were pruned
ledger           one row per transaction: id, buffer, lane, entry, outcome (applied, dead,
                 discarded), payload hash, xid, committed_at
dead_letter      one row per (id, hash): everything needed to show, edit, retry or discard it, and
                 the request of an operator that the owner of the lane carries out
outbox           follow-ups of a transaction, written with its effect
version()        version of this schema
fence(...)       locks the lane's row, compares epoch and token, counts; raises PR001
expect(...)      raises PR002 if a count is not the expected one
isolate(...)     applies transactions one by one in subtransactions and reports the failures
================ ===================================================================================
"""

from __future__ import annotations

from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError, DatabaseUnavailable, RightsMissing, SchemaMissing

VERSION = 1
LATER_STATE = "PR006"

DDL = """\
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
        RAISE EXCEPTION 'fenced: another processor owns lane %', in_lane USING ERRCODE = 'PR001';
    END IF;
END $function$;

CREATE OR REPLACE FUNCTION processor.expect(met bigint, expected bigint) RETURNS void
LANGUAGE plpgsql AS $function$
BEGIN
    IF met <> expected THEN
        RAISE EXCEPTION 'expected % rows, met %', expected, met USING ERRCODE = 'PR002';
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
                RAISE EXCEPTION USING ERRCODE = 'PR004';
            END IF;
            EXECUTE quick[(first - 1) / width + 1];
            SET CONSTRAINTS ALL IMMEDIATE;
            SET CONSTRAINTS ALL DEFERRED;
        EXCEPTION WHEN OTHERS THEN
            IF sqlstate ~ '^(40|53[^4]|55P|57|58[^P]|XX)' THEN
                RAISE;
            END IF;
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
                    IF sqlstate ~ '^(40|53[^4]|55P|57|58[^P]|XX)' THEN
                        RAISE;
                    END IF;
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
""".replace("{version}", str(VERSION))

# What `create` begins with: an older release must not replace the functions of a later one, whose
# processors are at work.
_NOT_LATER = f"""\
DO $block$ BEGIN
    IF to_regclass('processor.meta') IS NOT NULL THEN
        IF EXISTS (SELECT FROM processor.meta WHERE version > {VERSION}) THEN
            RAISE EXCEPTION 'the schema is of a later release' USING ERRCODE = '{LATER_STATE}';
        END IF;
    END IF;
END $block$;
"""

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


#: The least that a processor needs of its tables.
_RIGHTS = {
    "lane": "SELECT INSERT UPDATE", "ledger": "SELECT INSERT UPDATE DELETE",
    "dead_letter": "SELECT INSERT UPDATE", "outbox": "SELECT INSERT UPDATE DELETE",
}  # fmt: skip
_NO_RIGHT = "42501"
# Two processors with `database.init` starting together would collide in the catalog.
_LOCK = 7310593858020254331


def check(database: PostgresSession) -> None:
    """See that the schema is there and of this release. Raises SchemaMissing, RightsMissing."""
    try:
        rows = database.run("SELECT processor.version()")
    except DatabaseError as error:
        if database.alive and not database.idle:
            database.run("ROLLBACK")
        refuse_rights(database, error)
        raise SchemaMissing(
            f"the schema processor at {database.place} is not usable: {error}"
        ) from None
    found = rows[0][0]
    if found != VERSION:
        raise SchemaMissing(
            f"the schema processor at {database.place} has version {found}, this release needs"
            f" {VERSION}",
            hint="run the release that made it" if found > VERSION else "",
        )


def check_rights(database: PostgresSession) -> None:
    """See that the role may do what a processor does, where `check` holds. Raises RightsMissing."""
    wanted = [(name, right) for name, rights in _RIGHTS.items() for right in rights.split()]
    asked = ", ".join(f"has_table_privilege('processor.{n}', '{right}')" for n, right in wanted)
    granted = database.run(f"SELECT {asked}")[0]
    missing = {name for (name, _), has in zip(wanted, granted, strict=True) if not has}
    if missing:
        names = ", ".join(f"processor.{name}" for name in _RIGHTS if name in missing)
        raise RightsMissing(f"the role may not work with {names} at {database.place}")


def refuse_rights(database: PostgresSession, error: DatabaseError) -> None:
    """Raise RightsMissing if that is what PostgreSQL refused a statement of ours for."""
    if error.sqlstate == _NO_RIGHT:
        raise RightsMissing(
            f"the role may not work with the schema processor at {database.place}: {error}"
        ) from None


def create(database: PostgresSession) -> None:
    """Make or upgrade the schema in one transaction; safe when several do it at once.

    Raises DatabaseUnavailable if the role may not, SchemaMissing if it is of a later release.
    """
    try:
        database.run(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK}); {_NOT_LATER} {DDL} COMMIT")
    except DatabaseError as error:
        if database.alive and not database.idle:
            database.run("ROLLBACK")
        if error.sqlstate == LATER_STATE:
            check(database)
        raise _refused(database, error) from None


def _refused(database: PostgresSession, error: DatabaseError) -> DatabaseUnavailable:
    """Why `create` failed: who may not do what, and where."""
    role, name, owner = database.run(
        "SELECT current_user, current_database(), (SELECT pg_get_userbyid(nspowner)"
        " FROM pg_namespace WHERE nspname = 'processor')"
    )[0]
    what = "create" if owner is None else "upgrade"
    where = f"the schema processor in database {name} at {database.place}"
    if error.sqlstate != _NO_RIGHT:
        return DatabaseUnavailable(f"role {role} cannot {what} {where}: {error}")
    who = "a role that may create schemas" if owner is None else f"its owner, {owner}"
    return DatabaseUnavailable(
        f"role {role} may not {what} {where}: {error}",
        hint=f"run `processor init-db` with {who} (see PROCESSOR_ADMIN_DSN)",
    )
