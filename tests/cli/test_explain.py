"""`processor explain`: where a transaction is, why it is not applied, what releases it."""

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


def test_a_transaction_in_a_stream_waits_for_a_processor_to_start(
    at_site: Cli, site: Site
) -> None:
    (receipt,) = site.submit(write(1))
    answer = explained(at_site, receipt.id)
    assert (answer["place"], answer["lane"], answer["entry"]) == (
        "stream", receipt.lane, receipt.entry_id
    )
    assert (answer["why"], answer["release"]) == (
        "no processor is running", "start one with `processor run`"
    )


def test_a_transaction_in_a_paused_queue_waits_for_the_end_of_the_pause(
    at_site: Cli, site: Site
) -> None:
    at_site("queues", "pause", "default", "--for", "1h")
    (receipt,) = site.submit(write(1))
    answer = explained(at_site, receipt.id)
    assert "paused by an operator until 2" in answer["why"]
    assert answer["release"] == "`processor queues resume default`"


def test_a_delayed_transaction_is_explained_by_its_due_time(at_site: Cli, site: Site) -> None:
    (receipt,) = site.submit(write(1, delay=3600))
    answer = explained(at_site, receipt.id)
    assert answer["place"] == "scheduled"
    assert answer["due"].endswith("Z")


def test_a_committed_transaction_is_explained_by_its_ledger_row(at_site: Cli, site: Site) -> None:
    site.start()
    (receipt,) = site.submit(write(1, idempotency_key="order 42"))
    site.commits(1)
    answer = explained(at_site, receipt.id)
    assert (answer["place"], answer["entry"], answer["why"]) == ("applied", receipt.entry_id, None)
    by_key = at_site.json("explain", "--idempotency-key", "order 42")[0]
    assert by_key == answer


def test_a_failed_transaction_waits_for_its_retry_and_blocks_its_key(
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
    answer = explained(cli, failing.id)
    reason = ("23503 foreign_key_violation: operations[0] insert into child:"
              " constraint child_parent_fkey")  # fmt: skip
    assert (answer["place"], answer["attempts"], answer["reason"]) == ("parked", 1, reason)
    assert answer["why"] == f"it failed 1 time, last with {reason}"
    assert answer["release"].startswith("its next attempt is at ")
    answer = explained(cli, behind.id)
    assert (answer["place"], answer["waits_behind"]) == ("parked", failing.id)
    assert answer["reason"] is None
    assert failing.id in answer["release"]


def test_the_reason_of_a_failure_is_shown_without_values(
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
    answer = explained(cli, failing.id)
    assert answer["reason"] == "P0007: operations[0] insert into two\\nlines"
    assert "canary" not in str(answer)
    record = site.redis.hget(site.lane().parked, failing.id)
    assert "canary" not in record.decode().splitlines()[1]
    site.execute('drop trigger refuse on "two\nlines"')
    site.empties()
    assert site.one('select s from "two\nlines"') == "secret-canary"


def test_a_parked_record_of_an_earlier_release_has_no_reason(cli: Cli, site_of: Any) -> None:
    site = site_of(retry={"delay": 3600.0, "max_delay": 3600.0})
    cli.use(site.mapping)
    site.execute("create table child (parent int references account)")
    site.start()
    failing = Transaction(key="k").insert("child", {"parent": 1})
    site.submit(failing)
    site.parks(1)
    parked = site.lane().parked
    entry_id, failed, body = site.redis.hget(parked, failing.id).split(b"\n", 2)
    assert failed.startswith(b"1 23503 foreign_key_violation: ")
    site.redis.hset(parked, failing.id, b"\n".join((entry_id, b"1", body)))
    answer = explained(cli, failing.id)
    assert (answer["attempts"], answer["reason"], answer["why"]) == (1, None, "it failed 1 time")
    site.execute("insert into account (id) values (1)")
    site.redis.zadd(site.lane().retry, {failing.id: 0})
    drain_thread.stop()
    site.start()
    site.empties()
    assert site.one("select parent from child") == 1


def test_a_dead_letter_is_explained_by_its_reason_and_its_request(
    at_site: Cli, dead_site: Site
) -> None:
    (dead,) = poison(dead_site, key="k")
    (behind,) = dead_site.submit(write(1, key="k"))
    wait_until(lambda: dead_site.parked() == 1)
    answer = explained(at_site, dead)
    assert answer["place"] == "dead"
    assert dead_site.dead()[0][2] in answer["why"]
    assert "it holds key k" in answer["why"]
    assert f"processor dead retry {dead}" in answer["release"]
    assert explained(at_site, behind.id)["waits_behind"] == dead
    drain_thread.stop()
    at_site("dead", "retry", dead)
    assert "retry was requested by" in explained(at_site, dead)["release"]


def test_an_entry_of_a_later_release_waits_for_an_upgrade(at_site: Cli, site: Site) -> None:
    body = json.dumps({"id": UNKNOWN, "new": True}).encode()
    site.put({"v": "99", "tx": body})
    answer = explained(at_site, UNKNOWN)
    assert "envelope version 99" in answer["why"]
    assert answer["release"] == "upgrade the processor"


def test_an_outage_explains_why_a_transaction_waits(at_site: Cli, site: Site) -> None:
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
    answer = said.records[0]
    assert answer["place"] == "stream"
    assert answer["why"].startswith("outage: ")


def test_a_long_outage_is_not_mistaken_for_a_hanging_owner(
    at_site: Cli, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass finishes during an outage, but the owner does not hang."""
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
    answer = at_site("explain", receipt.id, "--json").records[0]
    assert answer["why"].startswith("outage: ")
    assert answer["release"].endswith("applied when the server is available again")


def test_explain_uses_redis_alone_while_postgresql_is_unavailable(cli: Cli, site: Site) -> None:
    (receipt,) = site.submit(write(1))
    cli.use(merged(site.mapping, {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}))
    said = cli("explain", receipt.id, "--json")
    assert said.code == 0
    assert said.records[0]["place"] == "stream"
    assert "this is what Redis knows" in said.error
    assert cli("explain", UNKNOWN).code == 69


def test_an_unknown_transaction_is_a_failure(at_site: Cli, site: Site) -> None:
    said = at_site("explain", UNKNOWN, "--json")
    assert said.code == 1
    assert said.records[0]["place"] == "unknown"


def test_a_transaction_is_found_among_many_whatever_time_its_id_has(
    at_site: Cli, site: Site
) -> None:
    ahead = Transaction(id=UNKNOWN.replace("01a2", "01ff")).insert("tape", {"n": 0})
    old = Transaction(id=UNKNOWN.replace("01a2", "0190")).insert("tape", {"n": 0})
    named = Transaction(idempotency_key="x").insert("tape", {"n": 0})
    many = [write(n) for n in range(500)]
    site.submit(*many[:250], ahead, old, named, *many[250:])
    assert explained(at_site, ahead.id)["place"] == "stream"
    assert explained(at_site, old.id)["place"] == "stream"
    assert explained(at_site, named.id)["place"] == "stream"
    assert explained(at_site, site.submit(write(1))[0].id)["place"] == "stream"
