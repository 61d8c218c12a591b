"""A registered statement may call any function; what that does to the session ends with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from processor.transaction.builder import Transaction
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

#: The session as the next transaction meets it.
SEEN = """
create schema other; create table other.seen (n int);
create table seen (
    n int, who text default coalesce(current_setting('app.user', true), ''),
    path text default current_setting('search_path'), role text default current_user,
    login text default session_user, zone text default current_setting('TimeZone'),
    strings text default current_setting('standard_conforming_strings'),
    replica text default current_setting('session_replication_role'),
    pins text default current_setting('lock_timeout') || current_setting('idle_session_timeout'));
create sequence counted;
"""
#: What a function does, and what is right afterwards.
LEAKS = {
    "a variable of the application": "perform set_config('app.user', 'mallory', false)",
    "a variable, locally": "perform set_config('app.user', 'mallory', true)",
    "search_path": "set search_path = other",
    "search_path, locally": "set local search_path = other",
    "the role": "set role witness",
    "the role, locally": "set local role witness",
    "session authorization": "set session authorization witness",
    "the meaning of backslashes": "set standard_conforming_strings = off",
    "the time zone": "set TimeZone = 'Asia/Tokyo'",
    "a limit": "set statement_timeout = 1",
    "triggers": "set session_replication_role = replica",
    "all settings": "reset all",
    "a temporary table": "create temp table seen (n int)",
    "a temporary table that is filled": "create temp table seen as select 1 as n",
    "a listener": "listen anything",
    "a cursor": "execute 'declare kept cursor with hold for select 1'",
    "a prepared statement": "execute 'prepare kept as select 1'",
    "an advisory lock": "perform pg_advisory_lock(-5), pg_advisory_lock(-5),"
    " pg_advisory_lock_shared(6, -7)",
    "the locks of the lanes": "perform pg_advisory_unlock_all()",
    "the last number of a sequence": "perform nextval('counted')",
}  # fmt: skip


#: Each together with others, and some on every way into the database.
WAYS = [(leak, "together") for leak in LEAKS] + [
    (leak, way)
    for leak in ("search_path", "all settings", "a temporary table", "an advisory lock")
    for way in ("isolated", "alone", "unprepared")
]


@pytest.fixture
def stepped(site_of: Callable[..., Site]) -> Callable[..., Site]:
    def make(leak: str, **settings: Any) -> Site:
        site = site_of(statements={"leak": "select leak()", "last": "select lastval()"}, **settings)
        site.execute(SEEN)
        site.execute("do $$ begin create role witness; exception when others then end $$")
        site.execute("grant insert on tape to witness")
        site.execute(
            "create function leak() returns void language plpgsql as"
            f" $$ begin {leak}; insert into public.tape (n) values (0); end $$"
        )
        return site

    return make


def states(site: Site) -> list[tuple[Any, ...]]:
    return site.execute("select n, who, path, role, login, zone, strings, replica, pins from"
                        " public.seen order by n")  # fmt: skip


def session(site: Site, drain: Any) -> list[Any]:
    """What the drain's own session holds that no setting shows."""
    return [
        drain.database.run(query)[0][0]
        for query in (
            "select array_agg((classid::bigint << 32 | objid::bigint)::text) from pg_locks"
            " where locktype = 'advisory' and pid = pg_backend_pid()",
            "select count(*) from pg_listening_channels()", "select count(*) from pg_cursors",
            "select count(*) from pg_class where relpersistence = 't'",
        )
    ]  # fmt: skip


def seen(n: int) -> Transaction:
    return Transaction(attempts=1).insert("seen", {"n": n})


@pytest.mark.parametrize(("leak", "way"), WAYS)
def test_what_a_statement_changes_ends_with_its_transaction(
    leak: str, way: str, stepped: Callable[..., Site]
) -> None:
    """Rule 12: neither the next transaction of the batch nor the next batch meets it."""
    site = stepped(LEAKS[leak], database={"prepare": way != "unprepared"})
    drain = site.drain()
    site.submit(seen(1))
    step(drain)
    before = session(site, drain)
    leaking = Transaction(attempts=1, timeout=5 if way == "alone" else None).statement("leak")
    if way == "isolated":
        site.submit(write(1, attempts=1).insert("nowhere", {"n": 1}))
        site.submit(Transaction(attempts=1).insert("account", {"id": None}))
    dead = 2 if way == "isolated" else 0

    site.submit(seen(2), leaking, seen(3))
    step(drain)
    site.submit(leaking_again(way), seen(4))
    step(drain)
    site.submit(seen(5), write(5, attempts=1))
    step(drain)

    assert len(site.dead()) == dead
    assert site.tape() == [0, 0, 5]
    assert [(n, *states(site)[0][1:]) for n in range(1, 6)] == states(site)
    assert site.one("select count(*) from other.seen") == 0
    assert session(site, drain) == before


def leaking_again(way: str) -> Transaction:
    return Transaction(attempts=1, timeout=5 if way == "alone" else None).statement("leak")


def test_a_variable_holds_for_the_rest_of_its_own_transaction(stepped: Callable[..., Site]) -> None:
    site = stepped(LEAKS["a variable of the application"])
    drain = site.drain()
    site.submit(Transaction(attempts=1).statement("leak").insert("seen", {"n": 1}), seen(2))

    step(drain)

    assert site.execute("select who from seen order by n") == [("mallory",), ("",)]
    assert site.dead() == []


def test_a_retried_dead_letter_leaves_the_session_as_it_was(stepped: Callable[..., Site]) -> None:
    site = stepped("perform set_config('app.user', 'mallory', false), 1 / count(*) from account")
    site.start()
    bad = Transaction(attempts=1).statement("leak")
    site.submit(bad)
    wait_until(lambda: [state for _, state, _ in site.dead()] == ["22012"], message=site.tale)
    site.execute("insert into account values (1)")
    site.ask(bad.id, "retry")
    site.commits(0)
    site.submit(seen(1))
    wait_until(lambda: site.execute("select who from seen") == [("",)], message=site.tale)
