"""Transactions that fail alike: their kind is held and named, and the rest of the lane works on."""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any

import pytest

from processor.admin import pauses
from processor.admin.sessions import OperatorSessions
from processor.buffer.parked import HELD
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness import pages
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

#: So that the operator and not the next trial ends a pause.
SELDOM = 600.0


def nowhere(n: int, **options: Any) -> Transaction:
    return Transaction(**options).insert("nowhere", {"n": n})


def failing(site: Site) -> list[dict[str, Any]]:
    """The paused kinds of the lane, as /health shows them."""
    lane = drain_thread.state()["lanes"].get("default:0", {})
    return list(lane.get("failing", []))


def held(site: Site) -> int:
    return int(site.redis.zcount(site.lane().retry, HELD, "+inf"))


def holds(site: Site, count: int) -> None:
    wait_until(lambda: held(site) == count and failing(site), 10, lambda: f"{held(site)}")


def rows(site: Site, table: str) -> int:
    return int(site.one(f"select count(*) from {table}"))


def test_inserts_into_a_missing_table_are_held_and_named_while_other_work_passes(
    site: Site, caplog
) -> None:
    site.start()
    lost = [nowhere(n, attempts=1) for n in range(400)]
    site.submit(*lost)
    holds(site, 400)
    site.submit(*(write(n, attempts=1) for n in range(1, 20)))

    site.commits(*range(1, 20))
    assert site.dead() == []
    assert site.depth() == 0
    (kind,) = failing(site)
    assert kind["operations"] == "insert into nowhere"
    assert (kind["sqlstate"], kind["condition"]) == ("42P01", "undefined_table")
    assert kind["first"] == lost[0].id
    assert kind["since"] <= kind["next_try"]
    wait_until(lambda: failing(site)[0]["held"] == 400)
    assert "insert into nowhere fails with 42P01 undefined_table: 400 transactions" in site.reason
    assert site.status == "running"
    labels = {"lane": "default:0", "operations": "insert into nowhere", "sqlstate": "42P01"}
    assert pages.sample("held", **labels) == 400
    assert f"the first is {lost[0].id}" in caplog.text

    site.execute("create table nowhere (n int)")

    wait_until(lambda: rows(site, "nowhere") == 400)
    site.empties()
    wait_until(lambda: not failing(site))
    assert "insert into nowhere no longer fails with 42P01" in caplog.text
    assert "held" not in pages.names()
    assert site.dead() == []


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        ("create publication every for table account for tables in schema processor;"
         " alter table account replica identity nothing",
         "alter table account replica identity default", "55000"),
        ("alter table account rename to accounts", "alter table accounts rename to account",
         "42P01"),
        ("alter table account rename column balance to amount",
         "alter table account rename column amount to balance", "42703"),
    ],
)  # fmt: skip
def test_updates_that_fail_alike_wait_until_the_cause_is_mended(
    before: str, after: str, state: str, site: Site
) -> None:
    site.execute("insert into account values (1, 0)")
    site.execute(before.replace(" for tables in schema processor", ""))
    site.start()
    site.submit(*(
        Transaction(attempts=1).update("account", add={"balance": 1}, where={"id": 1})
        for _ in range(40)
    ))  # fmt: skip
    site.submit(write(1, attempts=1))
    holds(site, 40)

    site.commits(1)
    assert [(k["operations"], k["sqlstate"]) for k in failing(site)] == [("update account", state)]
    site.execute(after)

    wait_until(lambda: site.one("select balance from account") == 40)
    assert site.dead() == []


def test_rows_without_a_partition_wait_until_it_is_made(site: Site) -> None:
    site.execute("create table measured (at date, n int) partition by range (at)")
    site.start()
    day = datetime.date(2026, 12, 1)
    site.submit(*(
        Transaction(attempts=1).insert("measured", {"at": day, "n": n}) for n in range(150)
    ))  # fmt: skip
    holds(site, 150)
    assert failing(site)[0]["sqlstate"] == "23514"

    site.execute("create table december partition of measured default")

    wait_until(lambda: rows(site, "measured") == 150)
    assert site.dead() == []


def test_an_entry_waits_behind_a_held_one_that_shares_its_key(site: Site) -> None:
    """P3. Entries without that key pass."""
    drain = site.drain()
    site.submit(*(nowhere(n) for n in range(30)))
    step(drain)
    site.submit(nowhere(30, key="a"), write(1, key="a"), write(2, key="b"), write(3))
    site.submit(write(4, key="a"))

    step(drain)
    assert site.tape() == [2, 3]
    site.execute("create table nowhere (n int)")
    until = time.monotonic() + 20
    while site.parked() and time.monotonic() < until:
        step(drain)

    assert site.tape() == [2, 3, 1, 4]
    assert rows(site, "nowhere") == 31


def test_a_resumed_queue_tries_held_entries_within_two_seconds(
    site: Site, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("processor.ownership.failing_alike.backoff", lambda *_: SELDOM)
    monkeypatch.setattr("processor.drain.due_work._REPORT_EVERY", 0.0)
    caplog.set_level(logging.WARNING)
    site.start()
    site.submit(*(nowhere(n, attempts=1) for n in range(60)))
    holds(site, 60)
    (pause,) = drain_thread._run.drain.owners.lanes["default:0"].alike.pauses  # type: ignore[union-attr]
    wait_until(lambda: pause.tries == 1)
    # Each pass logs it before the trial: two more lines, and the trial is over.
    before = caplog.text.count("insert into nowhere fails")
    wait_until(lambda: caplog.text.count("insert into nowhere fails") > before + 1, 10, "logged")
    site.execute("create table nowhere (n int)")
    operator = OperatorSessions(site.settings)
    lanes = {lane.name: lane for lane in wait_until(
        lambda: [x for x in pauses.lanes(operator) if x.failing])}  # fmt: skip
    assert lanes["default:0"].failing[0]["sqlstate"] == "42P01"

    pauses.resume(operator, "default")

    wait_until(lambda: rows(site, "nowhere") == 60, 2.0)
    assert site.dead() == []
    assert "resumed by an operator: insert into nowhere" in caplog.text


def test_another_owner_releases_what_was_held(site: Site) -> None:
    first = site.drain()
    site.submit(*(nowhere(n, attempts=1) for n in range(60)))
    step(first)
    assert held(site) == 60
    first.leave()
    site.execute("create table nowhere (n int)")

    site.start()

    wait_until(lambda: rows(site, "nowhere") == 60)
    site.empties()
    assert site.dead() == []


def test_a_kind_is_released_although_one_of_its_entries_fails_for_a_reason_of_its_own(
    site: Site,
) -> None:
    """The first row has no partition for ever: it must not be the only one that is tried."""
    site.execute("create table measured (at int, n int) partition by range (at)")
    site.start()
    site.submit(*(
        Transaction(attempts=1).insert("measured", {"at": at, "n": at}) for at in range(60)
    ))  # fmt: skip
    holds(site, 60)

    site.execute("create table most partition of measured for values from (1) to (100)")

    wait_until(lambda: rows(site, "measured") == 59, 15)
    wait_until(lambda: len(site.dead()) == 1)


def test_refused_values_are_held_only_while_nothing_else_succeeds(site: Site) -> None:
    """A value is its transaction's own fault; a column that nobody fills is everybody's."""
    site.execute("create table strict (n int, filled int not null)")
    drain = site.drain()
    many = [Transaction(attempts=1).insert("strict", {"n": n}) for n in range(60)]
    site.submit(write(1), *many[:30])
    step(drain)
    assert [row[0] for row in site.dead()] == [each.id for each in many[:30]]

    site.submit(*many[30:])
    step(drain)

    assert len(site.dead()) == 30
    assert held(site) == 30
    site.submit(write(2))
    step(drain)
    assert site.tape() == [1, 2]
    assert held(site) == 30


def test_held_entries_do_not_exceed_the_limit_of_the_lane(site_of) -> None:
    """Otherwise producers would fill Redis without ever being refused."""
    site = site_of(buffer={"limit": 100}, batch={"entries": 50})
    drain = site.drain()
    for start in range(0, 200, 50):
        site.submit(*(nowhere(n) for n in range(start, start + 50)))
        step(drain)
        drain._backlog.measure_soon()
        step(drain)

    assert held(site) <= 150
    assert site.depth() >= 50
    site.execute("create table nowhere (n int)")
    until = time.monotonic() + 20
    while (site.parked() or site.depth()) and time.monotonic() < until:
        step(drain)

    assert rows(site, "nowhere") == 200
