"""Entries that stay in Redis until replicas have their outcome, parked ones included (rule 22)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from processor.connections.wal_position import parse_lsn
from processor.errors import DatabaseError
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.failover import Pair, held, replayed
from tests.harness.servers import Factory
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until

SHELF = "create table shelf (n int primary key); create table link (n int references shelf)"


def orphan(n: int = 9, **options: object) -> Transaction:
    """A transaction that fails and is retried until shelf `n` exists."""
    return Transaction(**options).insert("link", {"n": n})  # type: ignore[arg-type]


def test_a_retried_entry_without_a_key_spends_its_attempts_while_its_copy_stays(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", interval=0.05, retry={"attempts": 3, "delay": 0.2})
    site.execute(SHELF)
    site.start()
    replayed(site, pair)
    retried = counted("retried")
    site.submit(orphan())
    wait_until(site.dead, message=site.tale)
    assert retried() == 2
    site.empties()


def test_parked_entries_whose_copies_stay_are_not_read_again_and_again(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    site = site_at(settle="replicated", interval=0.05)
    site.start()
    replayed(site, pair)
    site.submit(Transaction(key="a").insert("tape", {"n": "poison"}))
    site.submit(*(write(n, key="a") for n in range(1, 501)))
    site.parks(500)
    # Every entry in the stream is parked or dead; none is withheld for the replica.
    wait_until(lambda: site.depth() == 500, message=site.tale)
    # A pass counts its batch only at its end.
    passes = counted("passes")
    wait_until(lambda: passes() >= 2)
    batches = counted("batches")
    wait_until(lambda: passes() > 20)
    assert batches() == 0

    site.ask(site.dead()[0][0], "discard")
    site.commits(*range(1, 501))
    site.empties()


def test_entries_that_a_full_redis_cannot_park_do_not_cause_the_whole_backlog_to_be_read_again(
    own_redis: Factory, site_of: Callable[..., Site], pair: Pair
) -> None:
    redis = own_redis()
    site = site_of(
        redis=redis, postgres=pair.primary, database={"dsn": pair.dsn}, settle="replicated",
        interval=0.05, replicas={"servers": {"near": pair.standby.dsn}},
        retry={"attempts": 50, "delay": 0.2},
    )  # fmt: skip
    site.execute(SHELF)
    site.start()
    replayed(site, pair)
    held(site, pair, *(write(n) for n in range(1, 1001)))
    assert drain_thread.stop()
    site.submit(orphan(key="a"), write(1001, key="a"), orphan(), *(write(n) for n in (1002, 1003)))
    site.redis.config_set("maxmemory", "1")
    site.start()
    wait_until(lambda: 1003 in site.tape(), message=site.tale)
    known, passes = counted("known"), counted("passes")
    wait_until(lambda: passes() > 10)
    assert known() < 300 * passes(), "every pass reads all withheld entries again"

    pair.fail(site)
    site.redis.config_set("maxmemory", "0")
    site.submit(Transaction().insert("shelf", {"n": 9}))

    wait_until(lambda: sorted(site.tape()) == list(range(1, 1004)), 20, message=site.tale)
    wait_until(lambda: site.one("select count(*) from link") == 2, message=site.tale)
    site.empties()
    assert site.dead() == []


def test_a_commit_whose_reply_was_an_error_is_not_taken_for_an_earlier_one(
    site_at: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is found in the ledger and withheld for a position at or after its own commit."""
    site = site_at(settle="replicated")
    site.execute(SHELF)
    drain = site.drain()
    step(drain)
    session, commits = drain._committer, []
    read_reply = session._commit

    def reply(row: Any) -> Any:
        commits.append(parse_lsn(row[1]))
        if len(commits) == 2:
            raise DatabaseError("57014", in_transaction=False)
        return read_reply(row)

    monkeypatch.setattr(session, "_commit", reply)
    # Entries with their own time limits are tried one by one when one of them fails.
    site.submit(orphan(timeout=5.0), *(write(n, timeout=5.0) for n in (1, 2)))
    step(drain)

    assert site.tape() == [1, 2]
    (span,) = drain.owners.lanes["default:0"].withheld.ranges
    assert span.position.lsn >= commits[1]


def lost(site: Site) -> None:
    """Wait until the replica counts as lost, so that nothing waits for it."""
    wait_until(
        lambda: drain_thread.singleton.state.replicas["near"].state == "lost", message=site.tale
    )


SOON_LOST = {"lost_after": 1.0, "timeout": 0.5, "interval": 0.02}


def test_an_unreadable_entry_that_left_redis_does_not_stop_work_after_a_failover(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    """An unreadable entry has no transaction id to be looked up on the new primary."""
    site = site_at(settle="replicated", replicas=SOON_LOST)
    site.start()
    site.submit(write(1))
    site.commits(1)
    site.empties()
    pair.link.hold()
    site.submit(write(2))
    lost(site)
    wait_until(lambda: site.depth() == 0, message=site.tale)
    site.put({"no": "transaction"})
    wait_until(lambda: len(site.dead()) == 1 and site.depth() == 0, message=site.tale)

    pair.fail(site)
    site.submit(write(3))
    wait_until(lambda: 3 in site.tape(), 15, site.tale, ignore=psycopg2.Error)


def test_an_entry_parked_without_a_copy_does_not_stop_work_after_a_failover(
    site_at: Callable[..., Site], pair: Pair
) -> None:
    """It was parked under `settle: committed`, so that the stream has no copy of it."""
    site = site_at(replicas=SOON_LOST, retry={"attempts": 100, "delay": 0.3, "max_delay": 0.3})
    site.execute(SHELF)
    site.start()
    site.submit(orphan(key="k"))
    site.parks(1)
    passes = counted("passes")
    drain_thread.reload(site.changed(settle="replicated"))
    wait_until(lambda: passes() >= 3)
    pair.link.hold()
    site.submit(write(2))
    lost(site)
    site.execute("insert into shelf values (9)")
    site.parks(0)
    wait_until(lambda: site.depth() == 0, message=site.tale)

    pair.fail(site)
    site.submit(write(3))
    wait_until(lambda: 3 in site.tape(), 15, site.tale, ignore=psycopg2.Error)


def test_an_entry_read_on_another_connection_is_not_removed_even_if_replicas_have_it(
    site_of: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis went back in between and issued the id again, to another entry (rule 9)."""
    site = site_of(settle="replicated", replicas={"servers": {"near": "host=/nowhere"}})
    stream = site.lane().stream
    site.submit(write(2))
    ((entry, later),) = site.redis.xrange(stream)
    site.redis.xdel(stream, entry)
    drain = site.drain()
    monkeypatch.setattr(drain._watch, "is_replicated", lambda _: True)
    monkeypatch.setattr(drain._watch, "is_everywhere", lambda _: True)
    kept, keep = [], drain._replicated.keep

    def keep_late(lane: Any, page: Any, notes: Any) -> None:
        if not kept:
            drain.redis.close()
            site.redis.delete(stream)
            site.redis.xadd(stream, later, id=page.first)
        kept.append(page.first)
        keep(lane, page, notes)

    monkeypatch.setattr(drain._replicated, "keep", keep_late)
    site.submit(write(1))
    while site.depth():
        step(drain)

    assert site.tape() == [1, 2]
    assert kept[0] == kept[1], "the new entry has the id of the old one"
