"""A database user who may create objects in `public` gains nothing through our SQL (rule 92).

The user lays traps: operators and functions with PostgreSQL's own names, for combinations of types
that fit better than PostgreSQL's wherever a name is resolved by the search_path. A trap that is
called advances a sequence, also if the transaction is rolled back afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from processor.transaction.builder import Transaction
from tests.harness.cli import Cli
from tests.harness.process import ROOT
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

TYPES = (
    "smallint", "integer", "bigint", "numeric", "text", "varchar", "uuid", "timestamptz", "uuid[]",
    "text[]", "integer[]", "bigint[]", "numeric[]", "smallint[]", "jsonb", "bytea", "pg_lsn",
    "xid8", "name", "oid", "regclass", "boolean", "interval", "mood", "price",
)  # fmt: skip
COMPARING = ("=", "<>", "<", ">", "<=", ">=", "~", "~~")
COMPUTING = ("||", "+", "-", "*", "/", "->>")

TABLES = """
create type mood as enum ('good', 'bad');
create domain price as numeric check (value < 1000000);
create table goods (id int primary key, label varchar(20), feels mood, costs price, n bigint);
insert into goods values (1, 'a', 'good', 1, 0);
create sequence caught;
grant usage on sequence caught to public;
"""

TRAPS = """
do $block$
declare l text; r text; o text; f record;
begin
    foreach l in array %(types)s loop
        foreach r in array %(types)s loop
            execute format($$create function public.trap_b(l %%s, r %%s) returns boolean
                language plpgsql as 'begin perform nextval(''public.caught''); return true; end'
                $$, l, r);
            execute format($$create function public.trap_l(l %%s, r %%s) returns %%1$s
                language plpgsql as 'begin perform nextval(''public.caught''); return l; end'
                $$, l, r);
            foreach o in array %(comparing)s loop
                execute format('create operator public.%%s (leftarg = %%s, rightarg = %%s,'
                               ' function = public.trap_b)', o, l, r);
            end loop;
            foreach o in array %(computing)s loop
                execute format('create operator public.%%s (leftarg = %%s, rightarg = %%s,'
                               ' function = public.trap_l)', o, l, r);
            end loop;
        end loop;
    end loop;
    -- Each function with each of its arguments of each type.
    for f in select distinct p.proname, (select string_agg(case when n = place then t else
                        case when format_type(a, null) ~ '^"?any' then 'text'
                             else format_type(a, null) end end, ', ' order by n)
                      from unnest(p.proargtypes::oid[]) with ordinality as u (a, n)) as given
               from pg_proc p, unnest(%(types)s::text[]) as t,
                    generate_series(1, p.pronargs) as place
              where p.pronamespace = 'pg_catalog'::regnamespace and p.pronargs between 1 and 4
                and p.proname = any (%(names)s)
                and not exists (select from unnest(p.proargtypes::oid[]) as a
                                 where format_type(a, null) in ('internal', 'cstring', '"any"'))
    loop
        execute format($$create or replace function public.%%I(%%s) returns text language plpgsql
            as 'begin perform nextval(''public.caught''); return null; end'$$,
            f.proname, f.given);
    end loop;
end $block$;
"""


def called() -> list[str]:
    """Return all words in our sources that could be calls of functions of PostgreSQL."""
    text = "".join(p.read_text() for p in (ROOT / "processor").rglob("*.py"))
    return sorted(set(re.findall(r"\b([a-z_0-9]+)\(", text)))


@pytest.fixture
def trapped(site: Site) -> Iterator[Site]:
    """A site in whose `public` another user laid traps, as everybody may on PostgreSQL 14."""
    name = f"hostile_{os.getpid()}"
    site.execute(f"{TABLES} create role {name}; grant create, usage on schema public to {name}")
    lists = {"types": list(TYPES), "comparing": list(COMPARING), "computing": list(COMPUTING),
             "names": called()}  # fmt: skip
    site.execute(f"set role {name}; {TRAPS}", lists)
    yield site
    site.close()
    site.execute(f"drop owned by {name} cascade; drop role {name}")


def goods(**options: object) -> Transaction:
    return Transaction(**options)  # type: ignore[arg-type]


def test_a_database_user_with_traps_in_public_is_called_by_nothing_of_ours(
    trapped: Site, cli: Cli
) -> None:
    site = trapped
    assert site.one("select 1::varchar = '1'::varchar") is True
    assert site.one("select is_called from caught"), "the traps do not work"
    site.execute("select setval('caught', 1, false)")

    site.start()
    site.submit(*(write(n) for n in range(1, 9)))
    site.submit(*(
        goods().update("goods", add={"costs": 1, "n": 1}, where={"label": "a"}, expect=1)
        for _ in range(8)
    ))  # fmt: skip
    site.submit(
        goods().upsert("goods", {"id": 2, "label": "b", "feels": "bad", "n": 0}, ["id"]),
        goods(key="k").update("goods", {"costs": 3}, where={"label": "nobody"}, expect=1),
        goods(key="k").update("goods", {"costs": 5}, where={"feels": "bad"}, expect=1),
        goods().insert("goods", {"id": 3, "n": "no number"}),
        goods().delete("goods", {"costs": 5, "label": "b"}),
        goods(timeout=1.0).update("goods", {"label": "c"}, where={"label": "a", "n": 8}),
    )
    wait_until(lambda: len(site.dead()) == 2, message=lambda: site.tale())
    cli.use(site.mapping)
    for command in (["status"], ["doctor"], ["verify"], ["dead", "list", "--sqlstate", "22"]):
        cli(*command)
    for each, verb in zip(site.dead(), ("discard", "retry"), strict=True):
        cli("explain", each[0])
        assert cli("dead", verb, each[0], "--yes").code == 0
    wait_until(lambda: len(site.dead()) == 1, message=lambda: site.tale())
    site.empties()

    assert site.one("select is_called from caught") is False
    assert site.one("select n from goods where id = 1") == 8
