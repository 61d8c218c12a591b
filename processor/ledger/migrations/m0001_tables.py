"""Version 1 of the schema, as release 0.1 creates it: its tables, indexes and functions.

This text is history and is not edited: what a later version changes is in a later migration.
"""

from __future__ import annotations

TEXT = """\
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
            IF sqlstate ~ '{ends_isolation}' THEN
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
                    IF sqlstate ~ '{ends_isolation}' THEN
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

INSERT INTO processor.meta (version) VALUES (1) ON CONFLICT (one) DO NOTHING;
"""
