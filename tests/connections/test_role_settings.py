"""Settings that the role or the database brings along: which are in force, and who is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from processor.config.settings import Database as Settings
from processor.connections import session_settings
from processor.transaction.builder import Transaction
from tests.harness.cli import Cli, as_role
from tests.harness.servers import Database
from tests.harness.site import Site, merged, step, write

#: A trigger function that relies on the search_path of the role.
TABLES = """
create schema app;
create table app.seen (n int, path text);
create table app.tape (like public.tape including all);
create function app.see() returns trigger language plpgsql as $$
begin
    insert into seen values (new.n, current_setting('search_path'));
    return new;
end $$;
create trigger see before insert on app.tape for each row execute function app.see();
"""


@pytest.fixture
def at_role(
    site_of: Callable[..., Site], database: Database
) -> Iterator[Callable[..., tuple[Site, str]]]:
    """`at_role(**settings)`: a site with those of `database`, and the name of the role it uses."""
    role = f"role_{os.getpid()}"
    database.execute(f"create role {role} superuser login")

    def make(**settings: Any) -> tuple[Site, str]:
        dsn = as_role(database.dsn, role)
        return site_of(database={"dsn": dsn, **settings}), role

    yield make
    database.execute(f"drop owned by {role}; drop role {role}")


def test_the_search_path_of_the_role_is_in_force(at_role: Callable[..., tuple[Site, str]]) -> None:
    """Also where poison is isolated, and behind a registered statement."""
    site, role = at_role()
    site.execute(TABLES + f"alter role {role} set search_path = app, public")
    drain = site.drain(site.changed(statements={"mark": "insert into seen values (3, 'mark')"}))
    bad = Transaction(attempts=1).insert("tape", {"n": "no number"})
    site.submit(write(1), Transaction().statement("mark"), write(2), bad, write(3))

    step(drain)

    assert site.execute("select n, path from app.seen order by n, path") == [
        (1, "app, public"), (2, "app, public"), (3, "app, public"), (3, "mark"),
    ]  # fmt: skip
    assert site.execute("select n from app.tape order by n") == [(1,), (2,), (3,)]
    assert len(site.dead()) == 1


def test_a_search_path_of_the_settings_overrules_that_of_the_role_and_doctor_says_so(
    at_role: Callable[..., tuple[Site, str]], cli: Cli
) -> None:
    site, role = at_role(search_path="public")
    site.execute(TABLES + f"alter role {role} set search_path = app, public")
    site.execute(f"alter role {role} set TimeZone = 'Asia/Kolkata'")
    site.execute(f"alter role {role} set statement_timeout = '7s'")
    site.execute(f"alter role {role} set session_replication_role = replica")
    step(drain := site.drain())
    site.submit(write(1))
    step(drain)
    assert site.tape() == [1]

    cli.use(merged(site.mapping, {}))
    said = [r for r in cli("doctor", "--json").records if r["section"] == "postgresql"]
    found = {(r["check"], r["level"]): r["found"] for r in said}
    assert "TimeZone = Asia/Kolkata (ours is UTC)" in found["role settings", "warn"]
    assert "search_path = app, public (ours is public)" in found["role settings", "warn"]
    assert "statement_timeout = 7000ms" in found["role settings", "ok"]
    assert "triggers do not fire" in found["triggers", "warn"]


def test_doctor_is_content_with_a_role_without_settings(
    at_role: Callable[..., tuple[Site, str]], cli: Cli
) -> None:
    site, _ = at_role()
    said = cli.use(site.mapping)("doctor", "--json").records
    assert [r["found"] for r in said if r["check"] == "role settings"] == ["none is overruled"]


def test_a_search_path_that_leads_to_our_schema_lets_no_transaction_write_to_it(
    at_role: Callable[..., tuple[Site, str]]
) -> None:
    """`"$user"` does for the printed role, whose name is `processor`."""
    site, role = at_role()
    site.execute(f"alter role {role} set search_path = processor, public")
    drain = site.drain()
    forged = Transaction(attempts=1).insert("ledger", {"lane": "default:0"})
    site.submit(write(1), forged)

    step(drain)

    assert site.tape() == [1]
    assert [row[:2] for row in site.dead()] == [(forged.id, "42P01")]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ('"$user", public', "public"),
        ("app, public", "app, public"),
        ("public, pg_catalog", "pg_catalog, public, pg_catalog"),
        ("pg_catalog, public", "pg_catalog, public"),
    ],
)
def test_operators_of_postgresql_come_first_whatever_the_search_path_of_the_role(
    theirs: str, ours: str, at_role: Callable[..., tuple[Site, str]]
) -> None:
    site, role = at_role()
    site.execute(f"alter role {role} set search_path = {theirs}")
    step(drain := site.drain())
    assert drain.database.run("show search_path") == [(ours,)]


def test_a_transaction_timeout_of_the_role_ends_no_batch(
    at_role: Callable[..., tuple[Site, str]]
) -> None:
    site, role = at_role()
    if site.one("select current_setting('server_version_num')::int") < 170000:
        pytest.skip("PostgreSQL has transaction_timeout from 17 on")
    site.execute(f"alter role {role} set transaction_timeout = '150ms'")
    drain = site.drain(site.changed(statements={"nap": "select pg_sleep(0.4)"}))
    site.submit(Transaction(attempts=1).insert("tape", {"n": 1}).statement("nap"), write(2))

    step(drain)

    assert site.tape() == [1, 2]


def test_transaction_timeout_is_set_only_where_postgresql_has_it() -> None:
    for text in (session_settings.writing(Settings()), session_settings.reading(Settings()),
                 session_settings.restoring(Settings())):  # fmt: skip
        assert re.search(r"'transaction_timeout', '0', false\) WHERE .* 170000;", text)
