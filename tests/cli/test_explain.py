"""`processor explain`: where it is, why it is not applied, what would release it."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any

import pytest

from processor.admin import explanation
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.cli import UNKNOWN, Cli, poison
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until


def explained(cli: Cli, transaction_id: str) -> dict[str, Any]:
    return cli.json("explain", transaction_id)[0]


def test_what_waits_in_a_stream_names_the_processor_that_is_missing(
    at_site: Cli, site: Site
) -> None:
    (receipt,) = site.submit(write(1))
    told = explained(at_site, receipt.id)
    assert (told["place"], told["lane"], told["entry"]) == (
        "stream", receipt.lane, receipt.entry_id
    )
    assert (told["why"], told["release"]) == (
        "no processor is running", "start one with `processor run`"
    )


def test_what_waits_in_a_paused_queue_names_the_pause(at_site: Cli, site: Site) -> None:
    at_site("queues", "pause", "default", "--for", "1h")
    (receipt,) = site.submit(write(1))
    told = explained(at_site, receipt.id)
    assert "paused by an operator until 2" in told["why"]
    assert told["release"] == "`processor queues resume default`"


def test_what_is_delayed_names_its_time(at_site: Cli, site: Site) -> None:
    (receipt,) = site.submit(write(1, delay=3600))
    told = explained(at_site, receipt.id)
    assert told["place"] == "scheduled"
    assert told["due"].endswith("Z")


def test_what_is_committed_names_lane_entry_and_time(at_site: Cli, site: Site) -> None:
    site.start()
    (receipt,) = site.submit(write(1, idempotency_key="order 42"))
    site.commits(1)
    told = explained(at_site, receipt.id)
    assert (told["place"], told["entry"], told["why"]) == ("applied", receipt.entry_id, None)
    by_key = at_site.json("explain", "--idempotency-key", "order 42")[0]
    assert by_key == told


def test_what_failed_names_its_next_try_and_what_waits_names_whom(
    cli: Cli, site_of: Any
) -> None:
    site = site_of(retry={"delay": 3600.0, "max_delay": 3600.0})
    cli.use(site.mapping)
    site.execute("create table child (parent int references account)")
    site.start()
    failing = Transaction(key="k").insert("child", {"parent": 1})
    site.submit(failing)
    wait_until(lambda: site.parked() == 1)
    (behind,) = site.submit(write(1, key="k"))
    wait_until(lambda: site.parked() == 2)
    told = explained(cli, failing.id)
    reason = "SQLSTATE 23503 table child constraint child_parent_fkey"
    assert (told["place"], told["attempts"], told["reason"]) == ("parked", 1, reason)
    assert told["why"] == f"it failed 1 time, last with {reason}"
    assert told["release"].startswith("its next attempt is at ")
    told = explained(cli, behind.id)
    assert (told["place"], told["waits_behind"], told["reason"]) == ("parked", failing.id, None)
    assert failing.id in told["release"]


def test_the_reason_of_a_failure_is_told_without_values_whatever_the_names_are(
    cli: Cli, site_of: Any
) -> None:
    site = site_of(retry={"delay": 0.1, "max_delay": 0.1, "attempts": 1000})
    cli.use(site.mapping)
    site.execute(
        'create table "two\nlines" (s text); create function refuse() returns trigger language'
        " plpgsql as $$ begin raise 'not %', new.s using errcode = 'P0007', table ="
        " 'two' || chr(10) || 'lines'; end $$;"
        ' create trigger refuse before insert on "two\nlines" execute function refuse()'
    )
    site.start()
    failing = Transaction(key="k").insert("two\nlines", {"s": "secret-canary"})
    site.submit(failing)
    wait_until(lambda: site.parked() == 1 and explained(cli, failing.id)["attempts"] > 2)
    told = explained(cli, failing.id)
    assert told["reason"] == "SQLSTATE P0007 table two lines"
    assert "canary" not in str(told)
    record = site.redis.hget(site.lane().parked, failing.id)
    assert "canary" not in record.decode().splitlines()[1]
    site.execute('drop trigger refuse on "two\nlines"')
    site.empties()
    assert site.one('select s from "two\nlines"') == "secret-canary"


def test_a_record_of_before_that_tells_no_reason_is_read(cli: Cli, site_of: Any) -> None:
    site = site_of(retry={"delay": 3600.0, "max_delay": 3600.0})
    cli.use(site.mapping)
    site.execute("create table child (parent int references account)")
    site.start()
    failing = Transaction(key="k").insert("child", {"parent": 1})
    site.submit(failing)
    site.parks(1)
    parked = site.lane().parked
    entry_id, failed, body = site.redis.hget(parked, failing.id).split(b"\n", 2)
    assert failed.startswith(b"1 SQLSTATE 23503")
    site.redis.hset(parked, failing.id, b"\n".join((entry_id, b"1", body)))
    told = explained(cli, failing.id)
    assert (told["attempts"], told["reason"], told["why"]) == (1, None, "it failed 1 time")
    site.execute("insert into account (id) values (1)")
    site.redis.zadd(site.lane().retry, {failing.id: 0})
    drain_thread.stop()
    site.start()
    site.empties()
    assert site.one("select parent from child") == 1


def test_what_is_dead_names_the_reason_and_what_was_asked(at_site: Cli, dead_site: Site) -> None:
    (dead,) = poison(dead_site, key="k")
    (behind,) = dead_site.submit(write(1, key="k"))
    wait_until(lambda: dead_site.parked() == 1)
    told = explained(at_site, dead)
    assert told["place"] == "dead"
    assert dead_site.dead()[0][2] in told["why"]
    assert "it holds key k" in told["why"]
    assert f"processor dead retry {dead}" in told["release"]
    assert explained(at_site, behind.id)["waits_behind"] == dead
    drain_thread.stop()
    at_site("dead", "retry", dead)
    assert "retry was requested by" in explained(at_site, dead)["release"]


def test_an_entry_of_a_later_release_names_the_update(at_site: Cli, site: Site) -> None:
    body = json.dumps({"id": UNKNOWN, "new": True}).encode()
    site.put({"v": "99", "tx": body})
    told = explained(at_site, UNKNOWN)
    assert "envelope version 99" in told["why"]
    assert told["release"] == "upgrade the processor"


def test_an_outage_is_named_as_what_keeps_it(at_site: Cli, site: Site) -> None:
    site.start()
    site.execute("alter schema processor rename to elsewhere")
    drain_thread.stop()
    site.redis.delete(*site.redis.keys("processor:state:*"))
    drain_thread.start(site.settings)
    site.shows("outage")
    (receipt,) = site.submit(write(1))
    wait_until(lambda: any(b'"outage"' in site.redis.get(key)
                           for key in site.redis.keys("processor:state:*")))
    said = at_site("explain", receipt.id, "--json")
    assert "this is what Redis knows" in said.error
    told = said.records[0]
    assert told["place"] == "stream"
    assert told["why"].startswith("outage: ")


def test_a_long_outage_is_still_named_as_what_keeps_it(
    at_site: Cli, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass is finished meanwhile, which is not the owner's doing."""
    monkeypatch.setattr(explanation, "_SILENT", 0.5)
    site.start()
    (receipt,) = site.submit(write(1))
    site.commits(1)
    site.execute("alter schema processor rename to elsewhere")
    site.execute("select pg_terminate_backend(pid) from pg_stat_activity"
                 " where application_name like 'processor %'")
    site.shows("outage")
    (receipt,) = site.submit(write(2))
    last_run = datetime.datetime.fromisoformat(
        drain_thread.state()["background_processor"]["last_run"]).timestamp()
    wait_until(lambda: time.time() - last_run > 1.5)
    told = at_site("explain", receipt.id, "--json").records[0]
    assert told["why"].startswith("outage: ")
    assert told["release"].endswith("applied when the server is available again")


def test_with_postgresql_away_redis_still_answers(cli: Cli, site: Site) -> None:
    (receipt,) = site.submit(write(1))
    cli.use(merged(site.mapping, {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}))
    said = cli("explain", receipt.id, "--json")
    assert said.code == 0
    assert said.records[0]["place"] == "stream"
    assert "this is what Redis knows" in said.error
    assert cli("explain", UNKNOWN).code == 69


def test_what_nobody_knows_is_said_to_be_unknown(at_site: Cli, site: Site) -> None:
    said = at_site("explain", UNKNOWN, "--json")
    assert said.code == 1
    assert said.records[0]["place"] == "unknown"


def test_an_id_of_any_time_is_found_among_many(at_site: Cli, site: Site) -> None:
    ahead = Transaction(id=UNKNOWN.replace("01a2", "01ff")).insert("tape", {"n": 0})
    old = Transaction(id=UNKNOWN.replace("01a2", "0190")).insert("tape", {"n": 0})
    named = Transaction(idempotency_key="x").insert("tape", {"n": 0})
    many = [write(n) for n in range(500)]
    site.submit(*many[:250], ahead, old, named, *many[250:])
    assert explained(at_site, ahead.id)["place"] == "stream"
    assert explained(at_site, old.id)["place"] == "stream"
    assert explained(at_site, named.id)["place"] == "stream"
    assert explained(at_site, site.submit(write(1))[0].id)["place"] == "stream"
