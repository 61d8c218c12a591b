"""What becomes of the last commits when a replica without them is promoted (rule 22).

The replica follows through a proxy. While the proxy is held, commits reach the primary alone; then
the primary is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable

import pytest

import processor
from processor.buffer import replica_status
from processor.connections.redis_client import RedisConnection
from processor.reads import reader
from processor.runtime import drain_thread
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.transaction.builder import Transaction
from tests.harness.failover import Pair, held, replayed
from tests.harness.servers import execute
from tests.harness.site import Site, counted, write
from tests.harness.wait import wait_until

# settle: replicated.


def test_what_a_failover_lost_is_applied_again_once_and_in_order(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", batch={"entries": 7})
    committed = counted("committed")
    site.start()
    site.submit(*(write(n) for n in range(1, 51)))
    replayed(site, pair, *range(1, 51))
    site.empties()
    held(site, pair, *(write(n) for n in range(51, 101)))
    assert site.depth() == 50
    # A batch is counted when it is settled, shortly after its commit.
    wait_until(lambda: committed() == 100)

    pair.fail(site)

    site.commits(*range(1, 101), timeout=20)
    site.whole(100)
    wait_until(lambda: committed() == 150)


def test_nothing_leaves_redis_before_the_replica_has_it(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", interval=0.05)
    site.start()
    known = counted("known")
    held(site, pair, *(write(n) for n in range(1, 31)))

    passes = counted("passes")
    wait_until(lambda: passes() > 10)
    assert site.depth() == 30
    assert known() == 0, "idle passes read the withheld entries again"

    pair.link.release()
    site.empties()
    replayed(site, pair, *range(1, 31))


def test_a_failover_while_no_processor_runs_loses_nothing_either(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated")
    site.start()
    held(site, pair, *(write(n) for n in range(1, 21)))
    assert drain_thread.stop()

    pair.fail(site)
    site.start()

    site.commits(*range(1, 21))
    site.whole(20)


def test_retries_and_dead_letters_that_a_failover_lost_end_the_same_way(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", retry={"delay": 0.05, "attempts": 2})
    site.execute("create table shelf (n int primary key)")
    site.execute("create table link (n int references shelf)")
    site.start()
    replayed(site, pair)
    wait_until(lambda: execute(pair.standby.dsn, "select to_regclass('link')")[0][0])
    pair.link.hold()
    ids = [
        site.submit(Transaction(key="a").insert("link", {"n": 9}))[0].id,
        site.submit(Transaction(key="a").insert("shelf", {"n": 1}))[0].id,
        site.submit(Transaction().insert("tape", {"n": "poison"}))[0].id,
        site.submit(write(1))[0].id,
    ]
    wait_until(lambda: {i for i, *_ in site.dead()} == {ids[0], ids[2]}, message=site.tale)
    wait_until(lambda: site.tape() == [1])
    assert site.depth() == 4

    pair.fail(site)

    wait_until(lambda: {i for i, *_ in site.dead()} == {ids[0], ids[2]}, 20, message=site.tale)
    site.commits(1)
    site.ask(ids[0], "discard")
    wait_until(lambda: site.execute("select n from shelf") == [(1,)], message=site.tale)
    site.empties()
    assert site.one("select count(*) from processor.ledger where outcome = 'applied'") == 2


def test_an_entry_that_was_retried_with_success_before_the_failover_is_applied_again(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", retry={"delay": 0.05, "attempts": 50})
    site.execute("create table shelf (n int primary key)")
    site.execute("create table link (n int references shelf)")
    site.start()
    wait_until(lambda: execute(pair.standby.dsn, "select to_regclass('link')")[0][0])
    pair.link.hold()
    site.submit(Transaction(key="a").insert("link", {"n": 1}))
    site.parks(1)
    site.submit(Transaction().insert("shelf", {"n": 1}))
    wait_until(lambda: site.execute("select n from link") == [(1,)], message=site.tale)
    assert site.depth() == 2

    pair.fail(site)

    wait_until(lambda: site.execute("select n from link") == [(1,)], 20, message=site.tale,
               ignore=Exception)  # fmt: skip
    site.empties()
    assert site.dead() == []


# A replica that is lost.


def test_nothing_waits_for_a_lost_replica_and_its_loss_is_logged(
    site_at: Callable[..., Site], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica beyond `replicas.lost_after` is lost (rule 33)."""
    caplog.set_level(logging.WARNING, "processor")
    site = site_at(settle="replicated", replicas={"timeout": 0.5, "lost_after": 1.0})
    site.start()
    replayed(site, pair)
    pair.standby.stop()
    site.submit(*(write(n) for n in range(1, 11)))
    site.commits(*range(1, 11))
    assert site.depth() == 10

    site.empties()
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "lost")
    assert any("replica near is lost" in r.getMessage() for r in caplog.records)

    pair.standby.start()
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "following")
    assert any("replica near is back" in r.getMessage() for r in caplog.records)
    held(site, pair, write(11))
    assert site.depth() == 1


# settle: committed.


def test_what_a_failover_lost_is_reported_with_its_ids(
    site_at: Callable[..., Site], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    site = site_at()
    site.start()
    site.submit(*(write(n) for n in range(1, 31)))
    replayed(site, pair, *range(1, 31))
    lost = held(site, pair, *(write(n) for n in range(31, 43)))
    site.empties()

    pair.fail(site)

    wait_until(lambda: drain_thread.state()["background_processor"]["loss"], 20, message=site.tale)
    loss = drain_thread.state()["background_processor"]["loss"]
    assert "left 12 commits behind" in loss
    assert lost[0] in loss
    redis = RedisConnection(site.settings.redis.url, 1.0)
    (record,) = replica_status.losses(redis, site.settings.namespace)
    redis.close()
    assert set(record["ids"].split(",")) == set(lost)
    assert site.tape() == list(range(1, 31))
    assert any(lost[0] in r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR)


def test_a_transaction_submitted_twice_is_reported_as_one_lost_commit(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at()
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    twice = write(2)
    lost = held(site, pair, twice, write(3))
    known = counted("known")
    site.submit(twice)
    wait_until(lambda: known() == 1)
    site.empties()

    pair.fail(site)

    assert loss(site) == lost
    assert "left 2 commits behind" in drain_thread.state()["background_processor"]["loss"]


def test_commits_that_a_lost_replica_lacks_are_reported_when_it_is_promoted(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(replicas={"timeout": 0.5, "lost_after": 1.0})
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    lost = held(site, pair, write(2), write(3))
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "lost")
    lost += held(site, pair, write(4))

    pair.fail(site)

    assert loss(site) == lost


def test_entries_that_left_redis_without_a_lost_replica_are_reported_when_it_is_promoted(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", retry={"attempts": 2, "delay": 0.1},
                   replicas={"timeout": 0.5, "lost_after": 1.0})  # fmt: skip
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    pair.link.hold()
    lost = [r.id for r in site.submit(write(2), Transaction().insert("link", {"n": 1}), write(3))]
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "lost")
    wait_until(site.dead)
    site.empties()

    pair.fail(site)

    assert set(loss(site)) == set(lost)


def test_a_loss_window_outlives_a_reload(site_at: Callable[..., Site], pair: Pair) -> None:
    """Also a reload that changes the settle level: entries that left Redis by then are lost."""
    site = site_at(settle="replicated")
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    site.empties()
    lost = held(site, pair, *(write(n) for n in range(2, 30)))
    assert site.depth() == 28
    drain_thread.reload(site.changed(settle="committed"))
    site.empties()
    epoch = drain_thread.state()["lanes"]["default:0"]["epoch"]
    drain_thread.reload(site.settings)
    wait_until(lambda: drain_thread.state()["lanes"].get("default:0", {}).get("epoch", 0) > epoch)
    held(site, pair, write(30))

    pair.fail(site)

    assert loss(site) == lost
    site.commits(1, 30)


def test_lost_commits_are_no_longer_merged_into_reads_unless_submitted_again(
    site_at: Callable[..., Site], pair: Pair, configured: Callable[[Site], Site]
) -> None:
    site = configured(site_at(overlay={"tables": {"account": "id"}}, interval=0.2))
    site.start()
    site.submit(write(1).insert("account", {"id": 1}))
    replayed(site, pair, 1)
    overlay = "processor:overlay"
    wait_until(lambda: not site.redis.exists(overlay))
    lost = [write(n).update("account", add={"balance": n}, where={"id": 1}) for n in (2, 3)]
    held(site, pair, *lost)
    site.submit(lost[0])  # As if the first reply had been lost.
    site.empties()

    pair.fail(site)

    assert set(loss(site)) == {each.id for each in lost}
    wait_until(lambda: not site.redis.exists(overlay))
    assert processor.read("account", {"id": 1})[0]["balance"] == 0
    drain_thread.stop()
    site.submit(lost[1])
    clearing = OverlayCleaner(site.settings)
    clearing.clear()
    for where in ({"id": 1}, None):
        assert processor.read("account", where, replica="primary")[0]["balance"] == 3
    site.start()
    site.commits(1, 3)
    wait_until(lambda: clearing.clear() and not site.redis.exists(overlay))
    clearing.close()
    reader.close()


def test_dead_letters_that_a_failover_lost_are_reported_and_hold_no_keys(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(retry={"attempts": 1})
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    pair.link.hold()
    some = [Transaction(), Transaction(key="a")]
    poison = [each.insert("tape", {"n": "poison"}) for each in some]
    lost = [receipt.id for receipt in site.submit(*poison, write(2))]
    site.submit(write(3, key="a"))
    wait_until(lambda: len(site.dead()) == 2, message=site.tale)
    site.parks(1)

    pair.fail(site)

    assert set(loss(site)) == set(lost)
    site.commits(1, 3)


def test_commits_that_a_crash_of_the_primary_lost_are_reported(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    """With synchronous_commit off it continues on the same timeline, from before them."""
    site = site_at()
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    lost = crash(site, pair, write(2), write(3))
    assert loss(site) == lost
    site.submit(write(4))
    site.commits(1, 4, timeout=20)


def test_commits_that_a_crash_of_the_primary_lost_are_applied_again(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated")
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    crash(site, pair, write(2), write(3))
    site.submit(write(4))
    site.commits(1, 2, 3, 4, timeout=20)
    site.whole(4)


def crash(site: Site, pair: Pair, *transactions: Transaction) -> list[str]:
    """Commit transactions that the primary loses in a crash before it writes its log; their ids."""
    pair.primary.reload({"synchronous_commit": "off"})
    # A session applies the setting at its next statement.
    passes = counted("passes")
    wait_until(lambda: passes() > 1)
    writer = site.one("select pid from pg_stat_activity where backend_type = 'walwriter'")
    os.kill(writer, signal.SIGSTOP)
    done = counted("committed")
    receipts = site.submit(*transactions)
    wait_until(lambda: done() == len(receipts), message=site.tale)
    pair.primary.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(writer, signal.SIGKILL)
    pair.primary.start()
    return [receipt.id for receipt in receipts]


def loss(site: Site) -> list[str]:
    """Wait for a report of lost commits; return their ids."""
    wait_until(lambda: drain_thread.state()["background_processor"]["loss"], 20, message=site.tale)
    redis = RedisConnection(site.settings.redis.url, 1.0)
    (record,) = replica_status.losses(redis, site.settings.namespace)
    redis.close()
    return record["ids"].split(",")


def test_a_failover_that_lost_nothing_reports_nothing(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at()
    site.start()
    site.submit(*(write(n) for n in range(1, 31)))
    replayed(site, pair, *range(1, 31))

    pair.fail(site)

    site.submit(write(31))
    site.commits(*range(1, 32), timeout=20)
    assert drain_thread.state()["background_processor"]["loss"] == ""


def test_a_returning_old_primary_is_not_written_to(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at()
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    pair.fail(site)
    site.submit(write(2))
    site.commits(1, 2, timeout=20)
    assert drain_thread.stop()

    pair.primary.start()
    drain_thread.start(site.changed(database={"dsn": pair.primary.dsn}))
    wait_until(lambda: "is an old primary" in site.reason, message=site.tale)
    site.submit(write(3))
    time.sleep(0.5)
    assert execute(pair.primary.dsn, "select n from tape") == [(1,)]
    assert drain_thread.stop()

    site.start()
    site.commits(1, 2, 3)


def test_a_frozen_first_host_does_not_prevent_connecting_to_the_second(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at()
    site.start()
    site.submit(write(1))
    replayed(site, pair, 1)
    pair.primary.freeze()
    pair.link.off()
    pair.standby.promote()
    site.dsn = pair.standby.dsn

    site.submit(write(2))
    site.commits(1, 2, timeout=20)
    pair.primary.thaw()
