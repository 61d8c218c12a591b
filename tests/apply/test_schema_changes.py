"""A migration under a running processor: what is written is what a fresh session would write."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

import processor
from processor.apply import applier
from processor.drain.drain import Drain
from processor.transaction.builder import Transaction
from tests.harness.site import Site, step
from tests.harness.wait import wait_until

TABLES = """
create table flow (
    n int primary key, at timestamp, code bigint, amount numeric(10,2), mood text);
create table log (n bigint);
create function note() returns trigger language plpgsql as
    $$ begin insert into log values (1); return null; end $$;
insert into account values (1);
"""
ROW_TRIGGER = "create trigger note after update on account for each row execute function note()"
STATEMENT_TRIGGER = (
    "create trigger note after update on account for each statement execute function note()"
)

#: What may be added and dropped at any time, and changes no row that is stored.
ON_AND_OFF = {
    "trigger": (ROW_TRIGGER, "drop trigger note on account"),
    "check": ("alter table account add constraint extra check (balance > -10)",
              "alter table account drop constraint extra"),
    "index": ("create unique index extra on flow ((n + 1))", "drop index extra"),
    "partition": ("alter table whole attach partition account default",
                  "alter table whole detach partition account"),
    "generated": ("alter table flow add twice bigint generated always as (n * 2) stored",
                  "alter table flow drop twice"),
}  # fmt: skip

Change = Callable[[Site, Drain], None]


def at_once(sql: str) -> Callable[[Site, pytest.MonkeyPatch], None]:
    """A change between two batches."""
    return lambda site, _: site.execute(sql)  # type: ignore[func-returns-value]


def flow(n: int, **values: Any) -> Transaction:
    """One row, and an addition: many of them are folded into two statements."""
    made = Transaction(attempts=1).insert("flow", {"n": n, **values})
    return made.update("account", add={"balance": 1}, where={"id": 1}, expect=1)


@pytest.fixture
def changed(site: Site) -> Site:
    site.execute(TABLES)
    return site


@pytest.fixture(params=["between two batches", "after a batch was rendered"])
def change(
    request: pytest.FixtureRequest, changed: Site, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Executes SQL at the worst moment."""
    if request.param == "between two batches":
        return lambda sql: changed.execute(sql) and None  # type: ignore[func-returns-value]

    def later(sql: str) -> None:
        reach = applier.crashpoint.reach

        def reached(name: str) -> None:
            if name == "batch-rendered":
                monkeypatch.undo()
                changed.execute(sql)
            reach(name)

        monkeypatch.setattr(applier.crashpoint, "reach", reached)

    return later


@pytest.mark.parametrize(
    ("sql", "value", "stored"),
    [
        ("alter table flow alter at type timestamptz", {"at": "2026-11-28T12:00:00"}, None),
        ("alter table flow alter at type text", {"at": "2026-11-28T12:00:00"},
         "2026-11-28T12:00:00"),
        ("alter table flow alter code type text", {"code": "007"}, "007"),
        ("alter table flow alter amount type numeric(10,1)", {"amount": 1.2}, "1.2"),
        ("alter table flow alter amount type numeric(10,1)", {"amount": 1.25}, None),
        ("alter table flow alter amount type text", {"amount": "1.20"}, "1.20"),
        ("alter table flow drop mood; alter table flow add mood bool", {"mood": True}, "t"),
        ("alter table flow rename to old; create table flow (n int primary key, code text)",
         {"code": "007"}, "007"),
        # Neither rewrites the table nor changes a flag of it.
        ("alter table flow alter amount type numeric(12,2)", {"amount": 2**32},
         "4294967296.00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 8], ids=["single", "folded"])
def test_a_value_is_stored_in_the_type_that_its_column_has_at_the_commit(
    changed: Site, change: Callable[[str], None], sql: str, value: dict[str, Any],
    stored: str | None, count: int,
) -> None:  # fmt: skip
    (column,) = value
    drain = changed.drain()
    changed.submit(*(flow(n, **{column: None}) for n in range(8)), flow(8, **{column: None}))
    step(drain)
    changed.submit(*(flow(n, **value) for n in range(100, 100 + count)))
    change(sql)
    step(drain)

    rows = changed.execute(f"set timezone = 'UTC'; select {column}::text from flow where n >= 100")
    if stored is None:
        assert rows == []
        state = "22007" if column == "at" else "22003"
        assert [found for _, found, _ in changed.dead()] == [state] * count
    else:
        stored = {"t": "true"}.get(stored, stored)
        assert rows == [(stored,)] * count
        assert changed.dead() == []
    assert changed.one("select balance from account") == 9 + len(rows)


@pytest.mark.parametrize("trigger", [ROW_TRIGGER, STATEMENT_TRIGGER])
def test_a_new_trigger_sees_every_single_change(
    changed: Site, change: Callable[[str], None], trigger: str
) -> None:
    drain = changed.drain()
    changed.submit(*(flow(n) for n in range(8)))
    step(drain)
    changed.submit(*(flow(n) for n in range(10, 50)))
    change(trigger)
    step(drain)

    assert changed.one("select balance from account") == 48
    assert changed.one("select count(*) from log") == 40


@pytest.mark.parametrize(
    "sql",
    [
        "alter table account add check (balance > -10)",
        "create index on account ((balance + 1))",
        "alter table account enable row level security",
        "create table part () inherits (account)",
        "alter table account add twice bigint generated always as (balance * 2) stored",
        "create unique index on account (balance)",
        "alter table flow add foreign key (code) references account",
    ],
)  # fmt: skip
def test_what_the_folding_relies_on_is_looked_up_again(
    changed: Site, change: Callable[[str], None], sql: str
) -> None:
    drain = changed.drain()
    changed.submit(*(flow(n) for n in range(8)))
    step(drain)
    changed.submit(*(flow(n) for n in range(10, 50)))
    loaded: list[Any] = []
    catalog = drain._committer.catalog
    load = catalog.load
    catalog.load = lambda *args: loaded.append(args) or load(*args)  # type: ignore[method-assign]
    change(sql)
    step(drain)

    assert loaded
    assert changed.one("select balance from account") == 48
    assert changed.dead() == []


@pytest.mark.parametrize(
    "sql",
    ["truncate flow", "grant select on account to public", "analyze", "vacuum flow", "alter table"
     " flow set (fillfactor = 90)"],
)  # fmt: skip
def test_what_changes_no_rendering_costs_one_repetition(
    changed: Site, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """Rule 17: most batches compare nothing."""
    drain = changed.drain()
    sent: list[str] = []
    commit = drain._committer.commit

    def committed(body: str, **more: Any) -> Any:
        if "processor_ledger" in body:
            sent.append(body)
        return commit(body, **more)

    monkeypatch.setattr(drain._committer, "commit", committed)
    versions = "pg_catalog.pg_attribute"
    for start in (0, 10):
        changed.submit(*(flow(n) for n in range(start, start + 8)))
        step(drain, looks=False)
    assert [versions in body for body in sent] == [True, False]

    changed.execute(sql)
    sent.clear()
    for start in (20, 30):
        changed.submit(*(flow(n) for n in range(start, start + 8)))
        step(drain, looks=False)

    assert [versions in body for body in sent] == [False, True, False]
    assert changed.one("select balance from account") == 32
    assert changed.dead() == []


def test_a_table_that_comes_first_in_the_search_path_is_written_at_once(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(database={"search_path": "mine, public"})
    site.execute(TABLES)
    drain = site.drain()
    for start in (0, 10):
        site.submit(*(flow(n, code=n) for n in range(start, start + 8)))
        step(drain)
    site.execute("create schema mine; create table mine.flow (n int primary key, code text)")
    site.submit(*(flow(n, code="007") for n in range(20, 28)))
    step(drain)

    assert site.execute("select distinct code from mine.flow") == [("007",)]
    assert site.one("select count(*) from mine.flow") == 8


def test_statements_do_not_have_everything_prepared_again(
    changed: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = changed.drain()
    sent: list[str] = []
    send = drain.database.send

    def noted(sql: str, **more: Any) -> None:
        sent.append(sql)
        send(sql, **more)

    processor.statement("schema-nothing", "select 1 where %(n)s::int = 0")
    for start in (0, 10, 20):
        calling = Transaction().statement("schema-nothing", {"n": 1})
        changed.submit(*(flow(n) for n in range(start, start + 8)), calling)
        if start:
            monkeypatch.setattr(drain.database, "send", noted)
        step(drain, looks=False)

    assert [sql for sql in sent if "flow" in sql or "EXECUTE" in sql]
    assert [sql[:80] for sql in sent if "PREPARE" in sql or "DEALLOCATE" in sql] == []


class Migrations:
    """Changes the tables at random, and checks under its lock what was written meanwhile."""

    def __init__(self, site: Site, seed: int) -> None:
        self._connection = psycopg2.connect(site.dsn, options="-c timezone=UTC")
        self._random = random.Random(seed)
        self._types = {"at": "timestamp", "code": "bigint", "amount": "numeric(10,2)"}
        self._on: set[str] = set()
        self._last = self._noted = self.rows = self.changes = 0

    def change(self) -> None:
        """Check, then change one thing."""
        with self._connection, self._connection.cursor() as cursor:
            # In the order in which the transactions lock them.
            cursor.execute("lock table flow; lock table only account")
            self._check(cursor)
            cursor.execute(self._change())
        self.changes += 1

    def _check(self, cursor: Any) -> None:
        cursor.execute(
            "select n, at::text, code::text, amount::text from flow where n > %s order by n",
            (self._last,),
        )
        found = cursor.fetchall()
        for n, *stored in found:
            assert stored == self._expected(n), (n, self._types)
            self._last = n
        self.rows += len(found)
        cursor.execute("select (select count(*) from log), (select balance from account)")
        noted, balance = cursor.fetchone()
        assert noted - self._noted == (len(found) if "trigger" in self._on else 0)
        assert balance == self.rows
        self._noted = noted
        if "generated" in self._on:
            cursor.execute("select count(*) from flow where twice is distinct from n * 2")
            assert cursor.fetchone() == (0,)

    def _expected(self, n: int) -> list[str | None]:
        """What a fresh session stores for a row that these types take."""
        zoned = self._types["at"] == "timestamptz"
        assert fits_always(n) or zoned == (n % 2 == 1)
        assert self._types["amount"] == "numeric(10,2)" or n % 5
        return [
            None if fits_always(n)
            else "2026-11-28 10:00:00+00" if zoned else "2026-11-28 12:00:00",
            "007" if self._types["code"] == "text" else "7",
            "1.25" if n % 5 == 0 else "1.5" if self._types["amount"] == "numeric(10,1)" else "1.50",
        ]

    def _change(self) -> str:
        # A dropped column goes on counting, and a table has at most 1,600.
        usual = ["at", "code", "amount", "trigger", "check", "index", "partition"]
        which = "generated" if self.changes % 20 == 19 else self._random.choice(usual)
        if which in ON_AND_OFF:
            self._on ^= {which}
            return ON_AND_OFF[which][which not in self._on]
        pair = {"at": ("timestamp", "timestamptz"), "code": ("bigint", "text"),
                "amount": ("numeric(10,2)", "numeric(10,1)")}[which]  # fmt: skip
        self._types[which] = pair[self._types[which] == pair[0]]
        new = self._types[which]
        return f"alter table flow alter {which} type {new} using {which}::{new}"

    def close(self) -> None:
        self._connection.close()


def fits_always(n: int) -> bool:
    """Some rows fit all types: were all of a batch refused, their kind would be paused."""
    return n % 10 == 3


def values(n: int) -> dict[str, Any]:
    """Values of which the types of the columns decide whether and how they are stored."""
    at = None if fits_always(n) else "2026-11-28T12:00:00" + ("+02:00" if n % 2 else "")
    return {"at": at, "code": "007", "amount": 1.25 if n % 5 == 0 else 1.5}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.soak)])
def test_work_flows_while_the_schema_changes_at_random(
    site_of: Callable[..., Site], count: int
) -> None:
    site = site_of(batch={"entries": 50})
    site.execute(TABLES)
    site.execute("create table whole (like account) partition by range (id)")
    migrations = Migrations(site, count)
    site.start()
    changer = Changer(migrations)
    try:
        for start in range(1, count + 1, 200):
            before = migrations.changes
            site.submit(*(flow(n, **values(n)) for n in range(start, start + 200)))
            wait_until(lambda: changer.failed or migrations.changes > before)  # noqa: B023
        wait_until(lambda: changer.failed or not site.depth(), 300)
    finally:
        changer.end()
    assert changer.failed is None
    site.empties(120.0)
    migrations.change()
    migrations.close()

    assert migrations.changes > count / 200
    dead = site.dead()
    assert migrations.rows + len(dead) == count
    assert {state for _, state, _ in dead} <= {"22003", "22007"}
    assert site.one("select count(*) from processor.ledger where outcome = 'applied'") == (
        migrations.rows
    )


class Changer:
    """Changes the schema in a thread until it is ended or a check fails."""

    def __init__(self, migrations: Migrations) -> None:
        self._migrations = migrations
        self._ending = threading.Event()
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = random.Random(1)
        while not self._ending.wait(pause.uniform(0.0, 0.03)):
            try:
                self._migrations.change()
            except BaseException as error:
                self.failed = error
                return

    def end(self) -> None:
        self._ending.set()
        self._thread.join(20)
