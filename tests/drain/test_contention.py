"""Locks of others: they cost little while they last, and work goes on soon after they are gone."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg2

from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until


def test_work_goes_on_within_five_seconds_after_locks_that_lasted_are_gone(site: Site) -> None:
    site.start()
    run = drain_thread._run
    assert run is not None
    lane = run.drain.owners.lanes["default:0"]
    with closing(psycopg2.connect(site.dsn)) as other:
        other.cursor().execute("lock table tape")
        site.submit(*(write(n, attempts=1) for n in range(1, 30)))
        wait_until(lambda: lane.health.reason.startswith("contended"))
        # As after minutes of it.
        lane.health.pauses = 12
        wait_until(lambda: lane.health.pauses > 12)

    site.commits(*range(1, 30), timeout=5.0)
    assert site.dead() == []


def test_a_lane_that_was_found_blocked_costs_others_one_lock_timeout(site: Site) -> None:
    drain = site.drain()
    step(drain)
    lane = drain.owners.lanes["default:0"]
    with closing(psycopg2.connect(site.dsn)) as other:
        other.cursor().execute("lock table tape")
        site.submit(write(1, attempts=1))
        step(drain)
        met = counted("verdicts", verdict="contention")
        wait_until(lambda: lane.health.paused_until < time.monotonic())

        step(drain)

        assert met() == 1


def test_requests_whose_table_is_locked_do_not_stop_the_lanes(site: Site, caplog) -> None:
    """One is tried now and then, for a short wait; the others wait with it."""
    site.execute("create table locked (n int constraint small check (n < 0))")
    site.start()
    bad = [Transaction(attempts=1).insert("locked", {"n": n}) for n in range(20)]
    site.submit(*bad)
    wait_until(lambda: len(site.dead()) == 20)
    site.execute("alter table locked drop constraint small")
    with closing(psycopg2.connect(site.dsn)) as other:
        other.cursor().execute("lock table locked")
        site.execute("update processor.dead_letter set request = 'retry', requested_at = now()")
        drain_thread.singleton.event.set()
        waits = []
        end = time.monotonic() + 4.0
        number = 0
        while time.monotonic() < end:
            number += 1
            started = time.monotonic()
            site.submit(write(number, queue="high"))
            wait_until(lambda want=number: site.one("select count(*) from tape") == want)  # type: ignore[misc]
            waits.append(time.monotonic() - started)
        assert len(site.dead()) == 20
    assert sum(wait > 0.5 for wait in waits) == 0, sorted(waits)[-9:]
    assert caplog.text.count("put off") <= 4

    wait_until(lambda: site.one("select count(*) from locked") == 20, 15)


def test_requests_have_a_limited_part_of_a_pass(site: Site) -> None:
    """The lanes have their turn between them."""
    site.execute(
        "create table slow (n int constraint small check (n < 0));"
        " create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.1); return new; end $$;"
        " create trigger slow before insert on slow for each row when (pg_trigger_depth() = 0"
        " and new.n >= 0) execute function slow()"
    )
    drain = site.drain()
    site.submit(*(Transaction(attempts=1).insert("slow", {"n": n}) for n in range(8)))
    wait_until(lambda: step(drain) or len(site.dead()) == 8)
    site.execute("alter table slow drop constraint small")
    site.execute("update processor.dead_letter set request = 'retry', requested_at = now()")

    def done() -> int:
        step(drain)
        return int(site.one("select count(*) from slow"))

    assert wait_until(done) <= 4
    wait_until(lambda: done() == 8)
