"""The ledger is pruned, Redis is restored from a backup: still nothing is applied twice (rule 23).

Ledger rows are aged by changing their dates. A backup is an earlier dump of Redis, which replaces
the dump file while the server is stopped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from processor.drain.drain import Drain
from processor.embedded import RedisServer
from processor.transaction.builder import Transaction
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until

AGED = "update processor.ledger set committed_at = committed_at - interval '8 days'"
KEPT = "select count(*) from processor.ledger"


def commit_without_removal(site: Site) -> None:
    """Commit the entries in the stream, with removal from it forbidden."""
    site.redis.execute_command("ACL", "SETUSER", "default", "-xdel")
    drain = site.drain(instance="before")
    step(drain)
    drain.database.close()
    drain.redis.close()
    site.redis.execute_command("ACL", "SETUSER", "default", "+xdel")


def passes_until(drain: Drain, condition: Callable[[], object]) -> None:
    def after_a_pass() -> object:
        step(drain)
        return condition()

    wait_until(after_a_pass, poll=0.05)


# A processor that was off for long.


def test_a_processor_that_was_off_for_longer_than_the_retention_applies_nothing_twice(
    own_redis, site_of
) -> None:
    site = site_of(redis=own_redis())
    site.submit(*(write(n) for n in range(1, 21)))
    commit_without_removal(site)
    assert (site.tape(), site.depth()) == (list(range(1, 21)), 20)
    site.execute(AGED)

    drain = site.drain()
    step(drain)
    step(drain)

    assert site.tape() == list(range(1, 21))
    assert site.depth() == 0


def test_an_applied_entry_in_a_paused_lane_keeps_its_ledger_row(own_redis, site_of) -> None:
    """Age alone does not show that an entry is settled."""
    site = site_of(redis=own_redis())
    site.submit(*(write(n) for n in range(1, 21)))
    commit_without_removal(site)
    site.execute(AGED)
    site.redis.hset("processor:paused", "default", 0)
    drain = site.drain()
    step(drain)
    assert (site.depth(), site.one(KEPT)) == (20, 20)

    site.redis.hdel("processor:paused", "default")
    drain.leave()
    step(site.drain(instance="after"))

    assert site.tape() == list(range(1, 21))
    assert site.depth() == 0


def test_an_applied_entry_that_is_still_parked_keeps_its_ledger_row(own_redis, site_of) -> None:
    site = site_of(redis=own_redis(), retry={"delay": 60.0, "max_delay": 60.0})
    site.execute("create table child (parent int references account)")
    drain = site.drain(instance="before")
    child = Transaction().insert("child", {"parent": 1})
    site.submit(child)
    step(drain)
    assert site.parked() == 1
    site.execute("insert into account values (1)")
    site.redis.zadd(site.lane().retry, {child.id: 0})
    site.redis.execute_command("ACL", "SETUSER", "default", "-hdel")
    passes_until(drain, lambda: site.one("select count(*) from child"))
    drain.database.close()
    drain.redis.close()
    assert site.parked() == 1
    site.redis.execute_command("ACL", "SETUSER", "default", "+hdel")
    site.execute(AGED)

    site.redis.hset("processor:paused", "default", 0)
    after = site.drain(instance="after")
    step(after)
    site.redis.hdel("processor:paused", "default")
    site.redis.zadd(site.lane().retry, {child.id: 0})
    passes_until(after, lambda: site.parked() == 0)

    assert site.one("select count(*) from child") == 1


def test_an_old_entry_that_was_never_applied_is_applied(site: Site) -> None:
    """A rule that goes by age alone would refuse it after an outage of weeks."""
    drain = site.drain()
    site.submit(write(1))
    step(drain)
    drain.leave()
    site.execute(AGED)
    old = f"{int(time.time() * 1000) - 8 * 86_400_000}-0"
    site.redis.delete(site.lane().stream)
    encoded = write(2).encode(0, 10_000)
    site.redis.xadd(site.lane().stream, {"v": "1", "tx": encoded.body}, id=old)

    step(site.drain(instance="after"))

    assert site.tape() == [1, 2]
    assert site.dead() == []


# Pruning.


def test_ledger_rows_that_are_old_and_settled_are_pruned_and_the_others_kept(site_of) -> None:
    site = site_of(retry={"delay": 60.0})
    site.execute("create table checked (n int check (n > 0))")
    drain = site.drain()
    poison = Transaction(key="k").insert("nowhere", {"n": 1})
    site.submit(poison, write(1, key="k"), *(write(n) for n in range(2, 11)))
    step(drain)
    drain.leave()
    assert site.one(KEPT) == 10
    site.execute(AGED)
    site.submit(write(11))

    step(site.drain(instance="after"))

    # The rows of the dead letter and of the new entry.
    assert site.one(KEPT) == 2
    assert site.one("select count(*) from processor.ledger where outcome = 'dead'") == 1
    assert site.one("select pruned_to is not null from processor.lane where lane = 'default:0'")
    assert site.tape() == list(range(2, 12))


def test_ledger_rows_younger_than_the_retention_are_kept(site: Site) -> None:
    drain = site.drain()
    site.submit(write(1))
    step(drain)
    drain.leave()
    site.execute("update processor.ledger set committed_at = committed_at - interval '6 days'")

    step(site.drain(instance="after"))

    assert site.one(KEPT) == 1


# A Redis that went back in time.


def backup(server: RedisServer, site: Site) -> Path:
    """Copy the dump of Redis as of now."""
    site.redis.save()
    copy = server.directory / "backup.rdb"
    shutil.copy(server.directory / "dump.rdb", copy)
    return copy


def restore(server: RedisServer, copy: Path) -> None:
    server.kill()
    shutil.copy(copy, server.directory / "dump.rdb")
    server.start()


def test_entries_that_a_restored_redis_brings_back_are_found_in_the_ledger(
    own_redis,
    site_of,
    caplog,
) -> None:
    server = own_redis()
    site = site_of(redis=server)
    drain = site.drain()
    site.submit(*(write(n) for n in range(1, 21)))
    copy = backup(server, site)
    step(drain)
    site.submit(write(21))
    step(drain)
    known = counted("known")

    restore(server, copy)
    step(drain)
    step(drain)

    assert site.tape() == list(range(1, 22))
    assert (known(), site.depth()) == (20, 0)
    assert "Redis went back" in caplog.text
    assert "loss" in repr(drain.state())
    site.submit(write(22))
    step(drain)
    assert site.tape() == list(range(1, 23))


@pytest.mark.parametrize("first", [False, True], ids=["processor first", "producer first"])
def test_entries_that_a_restored_redis_brings_back_after_pruning_become_dead_letters(
    first: bool, own_redis, site_of
) -> None:
    """They may have been applied: an operator has to judge. Later entries are applied."""
    server = own_redis()
    site = site_of(redis=server)
    drain = site.drain()
    keyed = write(3, key="k")
    site.submit(write(1), write(2), keyed)
    copy = backup(server, site)
    step(drain)
    drain.leave()
    site.execute(AGED)
    second = site.drain(instance="second")
    step(second)
    assert site.one(KEPT) == 0
    site.submit(write(4))
    step(second)

    restore(server, copy)
    if first:
        # This entry is newer than all that Redis lost, so the stream does not look old.
        site.submit(write(5))
    step(second)
    step(second)
    if not first:
        site.submit(write(5))
        step(second)

    assert site.tape() == [1, 2, 3, 4, 5]
    assert [reason.partition(":")[0] for _, _, reason in site.dead()] == ["possibly applied"] * 3
    assert site.depth() == 0
    site.submit(write(6, key="k"))
    step(second)
    assert site.tape() == [1, 2, 3, 4, 5]
    assert site.parked() == 1


def test_entries_brought_back_in_a_paused_queue_are_judged_when_it_resumes(
    own_redis,
    site_of,
) -> None:
    """Until then the mark is kept that shows the doubt about them."""
    server = own_redis()
    site = site_of(redis=server)
    drain = site.drain()
    site.submit(write(1))
    copy = backup(server, site)
    step(drain)
    drain.leave()
    site.execute(AGED)
    second = site.drain(instance="second")
    step(second)
    assert site.one(KEPT) == 0
    second.leave()
    restore(server, copy)
    site.redis.hset("processor:paused", "default", 0)

    third = site.drain(instance="third")
    step(third)
    site.redis.hdel("processor:paused", "default")
    passes_until(third, lambda: not site.depth())

    assert site.tape() == [1]
    assert [reason.partition(":")[0] for _, _, reason in site.dead()] == ["possibly applied"]


def test_parked_entries_brought_back_after_pruning_become_dead_letters(own_redis, site_of) -> None:
    server = own_redis()
    site = site_of(redis=server, retry={"delay": 60.0, "max_delay": 60.0, "attempts": 9})
    site.execute("create table late (n int)")
    site.execute("alter table late rename to later")
    site.execute("create view late as select n from later group by n")
    drain = site.drain()
    waiting = Transaction(key="k").insert("late", {"n": 1})
    site.submit(waiting, write(1, key="k"))
    step(drain, looks=False)
    assert site.parked() == 2
    copy = backup(server, site)
    site.execute("drop view late; alter table later rename to late")
    site.redis.zadd(site.lane().retry, {waiting.id: 0})
    passes_until(drain, lambda: site.tape() == [1])
    drain.leave()
    site.execute(AGED)
    second = site.drain(instance="second")
    step(second)
    assert site.one(KEPT) == 0

    restore(server, copy)
    site.submit(write(2))
    site.redis.zadd(site.lane().retry, {waiting.id: 0})
    passes_until(second, lambda: site.dead() and site.tape() == [1, 2])

    assert site.one("select count(*) from late") == 1
    assert [reason.partition(":")[0] for _, _, reason in site.dead()] == ["possibly applied"] * 2
    assert site.parked() == 0


@pytest.mark.parametrize("paused", [False, True], ids=["at once", "in a paused queue first"])
def test_delayed_entries_brought_back_after_pruning_become_dead_letters(
    paused: bool, own_redis, site_of
) -> None:
    """They enter the lane a second time, under entry ids that look new."""
    server = own_redis()
    site = site_of(redis=server)
    drain = site.drain()
    keyed = write(1, key="k", delay=0.2)
    site.submit(keyed, write(2, delay=0.3), write(3, delay=3600))
    copy = backup(server, site)
    passes_until(drain, lambda: site.tape() == [1, 2])
    drain.leave()
    site.execute(AGED)
    second = site.drain(instance="second")
    step(second)
    assert site.one(KEPT) == 0

    restore(server, copy)
    # As if the clock of Redis, which made their entry ids, were behind that of the producers.
    for member in site.redis.zrange(site.lane().scheduled, 0, 1):
        site.redis.zincrby(site.lane().scheduled, 1.0, member)
    if paused:
        site.redis.hset("processor:paused", "default", 0)
        step(second)
        second.leave()
        second = site.drain(instance="third")
        step(second)
        site.redis.hdel("processor:paused", "default")
    site.submit(write(5))
    passes_until(second, lambda: 5 in site.tape() and len(site.dead()) == 2)
    later = write(4, key="k")
    site.submit(later)
    passes_until(second, lambda: not site.depth())

    assert site.tape() == [1, 2, 5]
    assert [reason.partition(":")[0] for _, _, reason in site.dead()] == ["possibly applied"] * 2
    assert site.redis.zcard(site.lane().scheduled) == 1
    second.leave()
    site.start()
    site.ask(keyed.id, "discard")
    site.commits(1, 2, 5, 4)
    wait_until(lambda: site.redis.zcard(site.lane().blocked) == 0)


def test_a_parked_entry_older_than_all_pruned_rows_is_applied_if_redis_never_went_back(
    site: Site,
) -> None:
    """Without a rollback the ledger is certain that it was not applied."""
    first = site.drain(instance="first")
    poison = Transaction(key="k").insert("nowhere", {"n": 1})
    site.submit(poison, write(1, key="k"))
    step(first)
    site.submit(write(2))
    step(first)
    first.leave()
    site.execute(AGED)
    second = site.drain(instance="second")
    step(second)
    assert site.one(KEPT) == 1
    second.leave()

    site.start()
    site.ask(poison.id, "discard")

    site.commits(2, 1)
    assert site.dead() == []
