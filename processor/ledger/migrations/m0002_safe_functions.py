"""Version 2: versions, dead letters of any text, the namespace of a lane, safe functions.

The tables only gain columns with defaults, so processors of release 0.1 work with them.

DESIGN. A function keeps its meaning under its name: release 0.1 with `database.init` replaces the
functions that it knows by its own text. What changes gets a new name, with the version of the
schema as its suffix. The functions of release 0.1 are made safe as well, for as long as it runs.
"""

from __future__ import annotations

TEXT = """\
ALTER TABLE processor.meta ADD COLUMN IF NOT EXISTS oldest integer NOT NULL DEFAULT 1;
ALTER TABLE processor.meta ADD COLUMN IF NOT EXISTS newest integer NOT NULL DEFAULT 1;

ALTER TABLE processor.lane ADD COLUMN IF NOT EXISTS namespace text NOT NULL DEFAULT '';
ALTER TABLE processor.lane ADD COLUMN IF NOT EXISTS seen text;
ALTER TABLE processor.lane ADD COLUMN IF NOT EXISTS lost text;
ALTER TABLE processor.lane ADD COLUMN IF NOT EXISTS lost_at timestamptz;

ALTER TABLE processor.dead_letter ADD COLUMN IF NOT EXISTS version integer NOT NULL DEFAULT 1;
ALTER TABLE processor.dead_letter ADD COLUMN IF NOT EXISTS texts bytea;
CREATE INDEX IF NOT EXISTS dead_letter_died_at ON processor.dead_letter (died_at, id, hash);

-- search_path is pinned, so that no operator or function of another user is called (rule 92).
CREATE OR REPLACE FUNCTION processor.fence_2(
    in_buffer uuid, in_lane text, in_epoch bigint, in_token uuid,
    in_applied integer, in_dead integer, in_last text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
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

CREATE OR REPLACE FUNCTION processor.expect_2(met bigint, expected bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF met <> expected THEN
        RAISE EXCEPTION 'expected % rows, met %', expected, met USING ERRCODE = '{expect}';
    END IF;
END $function$;

-- The transactions that it executes need the search_path of the session, so it pins none, and every
-- name in it is qualified. (unnest of several arrays is resolved in pg_catalog by the parser.)
-- `plain` has the operations of all transactions, `ends` the place of each transaction's last one.
CREATE OR REPLACE FUNCTION processor.isolate_2(
    in_buffer uuid, in_lane text, ids uuid[], quick text[], plain text[], ends integer[],
    later integer[], earlier integer[], width integer) RETURNS jsonb
LANGUAGE plpgsql AS $function$
DECLARE
    failures pg_catalog.jsonb := '[]';
    step integer;
    bad integer[] := '{}';
    first integer := 1;
    last integer;
    k integer;
    state pg_catalog.text; message pg_catalog.text; more pg_catalog.text;
    tab pg_catalog.text; col pg_catalog.text; con pg_catalog.text;
BEGIN
    WHILE first OPERATOR(pg_catalog.<=) pg_catalog.cardinality(ends) LOOP
        last := least(first OPERATOR(pg_catalog.+) width OPERATOR(pg_catalog.-) 1,
                      pg_catalog.cardinality(ends));
        BEGIN
            -- Once something failed, a group may hold a follower of it: one by one from the first
            -- group that has any.
            IF width OPERATOR(pg_catalog.<) 2
               OR EXISTS (SELECT FROM unnest(later, earlier) AS pair (l, e)
                           WHERE l OPERATOR(pg_catalog.>=) first
                             AND l OPERATOR(pg_catalog.<=) last
                             AND e OPERATOR(pg_catalog.=) ANY (bad)) THEN
                RAISE EXCEPTION USING ERRCODE = '{one_by_one}';
            END IF;
            EXECUTE quick[((first OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) width)
                          OPERATOR(pg_catalog.+) 1];
            SET CONSTRAINTS ALL IMMEDIATE;
            SET CONSTRAINTS ALL DEFERRED;
        EXCEPTION WHEN OTHERS THEN
            IF sqlstate OPERATOR(pg_catalog.~) '{ends_isolation}' THEN
                RAISE;
            END IF;
            FOR k IN first..last LOOP
                IF EXISTS (SELECT FROM unnest(later, earlier) AS pair (l, e)
                            WHERE l OPERATOR(pg_catalog.=) k
                              AND e OPERATOR(pg_catalog.=) ANY (bad)) THEN
                    bad := pg_catalog.array_append(bad, k);
                    failures := failures OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(
                        'at', k OPERATOR(pg_catalog.-) 1, 'held', true);
                    CONTINUE;
                END IF;
                BEGIN
                    step := coalesce(ends[k OPERATOR(pg_catalog.-) 1], 0);
                    WHILE step OPERATOR(pg_catalog.<) ends[k] LOOP
                        step := step OPERATOR(pg_catalog.+) 1;
                        EXECUTE plain[step];
                    END LOOP;
                    step := NULL;
                    SET CONSTRAINTS ALL IMMEDIATE;
                    SET CONSTRAINTS ALL DEFERRED;
                EXCEPTION WHEN OTHERS THEN
                    IF sqlstate OPERATOR(pg_catalog.~) '{ends_isolation}' THEN
                        RAISE;
                    END IF;
                    GET STACKED DIAGNOSTICS
                        state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                        more = PG_EXCEPTION_DETAIL, tab = TABLE_NAME, col = COLUMN_NAME,
                        con = CONSTRAINT_NAME;
                    bad := pg_catalog.array_append(bad, k);
                    failures := failures OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(
                        'at', k OPERATOR(pg_catalog.-) 1, 'sqlstate', state,
                        'step', step OPERATOR(pg_catalog.-) 1 OPERATOR(pg_catalog.-)
                                coalesce(ends[k OPERATOR(pg_catalog.-) 1], 0),
                        'detail', pg_catalog."left"(message OPERATOR(pg_catalog.||) E'\\n'
                                                    OPERATOR(pg_catalog.||) more, 2000),
                        'table', tab, 'column', col, 'constraint', con);
                END;
            END LOOP;
        END;
        first := last OPERATOR(pg_catalog.+) 1;
    END LOOP;
    DELETE FROM processor.ledger WHERE id OPERATOR(pg_catalog.=) ANY (
        ARRAY(SELECT ids[b] FROM pg_catalog.unnest(bad) AS b));
    UPDATE processor.lane SET applied = applied OPERATOR(pg_catalog.-) pg_catalog.cardinality(bad)
     WHERE buffer OPERATOR(pg_catalog.=) in_buffer AND lane OPERATOR(pg_catalog.=) in_lane;
    RETURN failures;
END $function$;

-- The functions that release 0.1 calls.
ALTER FUNCTION processor.version() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION processor.fence(uuid, text, bigint, uuid, integer, integer, text)
    SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION processor.expect(bigint, bigint) SET search_path = pg_catalog, pg_temp;
CREATE OR REPLACE FUNCTION processor.isolate(
    in_buffer uuid, in_lane text, ids uuid[], quick text[], plain text[],
    later integer[], earlier integer[], width integer) RETURNS jsonb
LANGUAGE sql AS $function$
    SELECT processor.isolate_2(in_buffer, in_lane, ids, quick, plain,
        ARRAY(SELECT pg_catalog.generate_subscripts(plain, 1)), later, earlier, width)
$function$;

UPDATE processor.meta SET newest = 2 WHERE newest < 2;
"""
