"""Rules of the protocol that have no test file of their own: reading, settling, order.

Each test names its rule. The rules of ownership, verdicts, dead letters and retention are tested in
the files of these names, rule 17 in that of types.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import redis as redis_driver

from processor.apply.applier import Applier
from processor.buffer import delayed
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from processor.transaction.entry import decode
from processor.transaction.ids import new_id
from tests.harness.site import FAILING, Site, counted, step, write
from tests.harness.wait import wait_until


def body_of(transaction: Transaction) -> bytes:
    return transaction.encode(time.time(), 1_000_000).body


# Reading (rules 8 to 10).


def test_entries_below_the_cursor_are_found(site: Site) -> None:
    """Rule 9: Redis issues lower ids after its clock or its data went back."""
    drain = site.drain()
    site.submit(write(1), write(2))
    step(drain)
    site.redis.delete(site.lane().stream)
    for n, entry_id in ((3, "5-1"), (4, "5-2")):
        fields = {"v": "1", "tx": body_of(write(n))}
        site.redis.xadd(site.lane().stream, fields, id=entry_id)

    for _ in range(3):
        step(drain, looks=False)

    assert site.tape() == [1, 2, 3, 4]
    assert site.depth() == 0


def test_entries_are_removed_only_on_the_connection_on_which_they_were_read(
    site: Site, monkeypatch
) -> None:
    """Rule 9: by then the id may be that of another entry, which was not applied."""
    drain = site.drain()
    step(drain)
    fields = {"v": "1", "tx": body_of(write(1))}
    site.redis.xadd(site.lane().stream, fields, id="5-1")
    apply = Applier.apply

    def roll_back_redis(self: Applier, *arguments: Any, **named: Any) -> Any:
        outcome = apply(self, *arguments, **named)
        drain.redis.close()
        site.redis.delete(site.lane().stream)
        other = {"v": "1", "tx": body_of(write(2))}
        site.redis.xadd(site.lane().stream, other, id="5-1")
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Applier, "apply", roll_back_redis)
        step(drain, looks=False)
    assert site.depth() == 1
    step(drain)

    assert site.tape() == [1, 2]
    assert site.depth() == 0


def test_a_pass_that_fails_leaves_no_settlement_behind_for_the_next_owner(
    site_of, monkeypatch
) -> None:
    """Rule 9: what it did not settle is looked up in the ledger, by whoever owns the lane then."""
    site = site_of(batch={"entries": 1})
    drain = site.drain()
    site.submit(write(1), write(2))
    attempt = drain._attempts.attempt

    def fails_at_the_second_batch(*arguments: Any) -> Any:
        if drain._pending is not None:
            raise LookupError
        return attempt(*arguments)

    monkeypatch.setattr(drain._attempts, "attempt", fails_at_the_second_batch)
    with pytest.raises(LookupError):
        drain.run(time.monotonic())
    drain.leave(ends=False)
    step(site.drain(instance="next"))

    drain.run(time.monotonic())

    assert site.tape() == [1, 2]
    assert site.depth() == 0


def test_a_failed_delete_is_not_remembered_but_looked_up(own_redis, site_of) -> None:
    """Rules 9 and 20: entries that could not be removed are found in the ledger when read again."""
    site = site_of(redis=own_redis())
    drain = site.drain()
    step(drain)
    site.submit(*(write(n) for n in range(1, 6)))
    site.redis.execute_command("ACL", "SETUSER", "default", "-xdel")
    step(drain, looks=False)
    assert (site.tape(), site.depth()) == ([1, 2, 3, 4, 5], 5)
    assert drain.gate.is_shut
    known = counted("known")

    site.redis.execute_command("ACL", "SETUSER", "default", "+xdel")
    step(drain)

    assert known() == 5
    site.whole(5)


@pytest.mark.parametrize("many", [1, 7, 100])
def test_a_batch_has_no_more_entries_than_it_may(many: int, site_of) -> None:
    """Rule 10."""
    site = site_of(batch={"entries": many})
    drain = site.drain()
    site.submit(*(write(n) for n in range(1, 301)))
    while site.depth():
        step(drain)

    largest = "select max(n) from (select count(*) as n from tape group by xid) as batch"
    assert site.one(largest) == many
    site.whole(300)


def test_a_batch_has_no_more_bytes_than_it_may(site_of) -> None:
    """Rule 10: large entries behind small ones are read a few at a time."""
    site = site_of(batch={"bytes": 50_000}, buffer={"transaction_bytes": 20_000})
    drain = site.drain()
    site.submit(*(write(n) for n in range(1, 101)))
    site.submit(*(write(n, "x" * 10_000) for n in range(101, 141)))
    site.submit(*(write(n) for n in range(141, 201)))
    while site.depth():
        step(drain)

    bytes_of = "select sum(coalesce(length(scope), 0)) from tape group by xid order by 1 desc"
    sizes = [int(size) for (size,) in site.execute(bytes_of)]
    # The first large entries are read with the average size of the small ones.
    assert max(sizes) <= 50_000
    assert len([size for size in sizes if size]) <= 14
    site.whole(200)


# Settling (rule 20).


class Monitor:
    """Records every command that a Redis server receives while it is open."""

    def __init__(self, redis: redis_driver.Redis) -> None:
        self._redis = redis
        self.commands: list[tuple[Any, str]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with self._redis.monitor() as monitor:
            self._ready.set()
            for seen in monitor.listen():
                if seen["command"] == "ECHO the-end":
                    return
                client = (seen["client_address"], seen["client_port"])
                self.commands.append((client, seen["command"].split()[0].upper()))

    def end(self) -> list[tuple[Any, str]]:
        self._redis.echo("the-end")
        self._thread.join(10)
        return self.commands


def test_nothing_that_removes_is_sent_in_a_transaction_or_a_script(site: Site) -> None:
    """Rule 20: at the memory limit even MULTI[XDEL] is refused."""
    monitor = Monitor(site.redis)
    site.start()
    poison = Transaction(key="k").insert("nowhere", {"n": 1})
    later = write(9, delay=0.05)
    site.submit(write(1), poison, write(2, key="k"), write(3), later)
    site.put({"no": "transaction"})
    wait_until(lambda: sorted(site.tape()) == [1, 3, 9])
    site.ask(poison.id, "discard")
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 9])
    site.empties()
    drain_thread.stop()

    sent = monitor.end()

    commands = {command for _, command in sent}
    assert {"XADD", "XRANGE", "XDEL", "HSETNX", "ZADD"} <= commands
    assert not commands & {"EVAL", "EVALSHA", "FCALL", "XREADGROUP"}
    # Producers add in transactions; the processor sends none.
    producers = {client for client, command in sent if command == "MULTI"}
    allowed = {"MULTI", "EXEC", "WATCH", "GET", "HMGET", "HGET", "HSETNX", "SET", "SADD", "XADD",
               "ZADD", "XLEN", "ZCARD", "HELLO", "CLIENT", "SELECT"}  # fmt: skip
    assert {command for client, command in sent if client in producers} <= allowed


def test_parking_a_batch_costs_few_round_trips(site_of, proxy_to, redis_server) -> None:
    """With one round trip an entry, the session with PostgreSQL was taken for frozen meanwhile."""
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy, retry={"delay": 60.0, "max_delay": 60.0})
    site.execute(FAILING)
    drain = site.drain()
    step(drain)
    keys = [f"key {n % 24}" for n in range(216)]
    site.submit(*(write(n, "x" if n < 24 else None, key=key) for n, key in enumerate(keys)))
    proxy.latency(0.01)

    def trips(condition: Callable[[], object]) -> int:
        before = proxy.round_trips
        wait_until(lambda: (step(drain, looks=False), condition())[1])
        return proxy.round_trips - before

    assert trips(lambda: site.parked() == 216) < 60
    proxy.latency(0.0)
    drain.redis.close()
    proxy.latency(0.01)
    assert trips(lambda: drain.redis.alive) < 60
    site.execute("delete from failing")
    waiting = site.redis.zrange(site.lane().retry, 0, -1)
    site.redis.zadd(site.lane().retry, dict.fromkeys(waiting, 0))
    assert trips(lambda: site.parked() == 0) < 120
    tape = site.tape()
    for first in range(24):
        assert [n for n in tape if n % 24 == first] == list(range(first, 216, 24))


@pytest.mark.parametrize("entries", [1, 250])
def test_an_entry_that_a_full_redis_cannot_park_stays_and_its_key_is_blocked(
    entries: int, own_redis, site_of
) -> None:
    """Rule 20."""
    retry = {"attempts": 50, "delay": 0.05, "max_delay": 0.1}
    site = site_of(redis=own_redis(), batch={"entries": entries}, retry=retry)
    site.execute(FAILING)
    outages = counted("outages")
    site.submit(write(1, "x", key="k"), write(2, key="k"), write(3), write(4, key="k"), write(5))
    site.redis.config_set("maxmemory", 1)
    site.start()

    wait_until(lambda: 5 in site.tape())
    assert not {1, 2, 4} & set(site.tape())
    assert outages() == 0
    # Two passes later, no entry with the key has been applied.
    passes = counted("passes")
    wait_until(lambda: passes() >= 3)
    assert not {1, 2, 4} & set(site.tape())
    site.redis.config_set("maxmemory", 0)
    site.execute("delete from failing")

    wait_until(lambda: {1, 2, 4} <= set(site.tape()))
    assert [n for n in site.tape() if n < 100] == [3, 5, 1, 2, 4]
    site.empties()
    assert site.dead() == []


def test_no_entry_is_parked_before_an_earlier_one_that_could_not_be(site: Site) -> None:
    """Rule 20: a follower in line before it would be released before it."""
    drain = site.drain()
    step(drain)
    first, second = write(1, key="k"), write(2, keys=["j", "k"])
    lane = drain.owners.lanes["default:0"]
    lane.parking.unparked[first.id] = decode("1-1", b"1", body_of(first))
    lane.cursor.rewinds = False
    site.submit(second, write(3, key="j"), write(4))

    step(drain, looks=False)

    assert site.tape() == [4]
    assert (site.depth(), site.parked()) == (2, 0)
    assert site.redis.zcard(site.lane().blocked) == 0
    assert lane.parking.unparked.keys() >= {first.id, second.id}


def test_a_parked_entry_that_fails_again_in_a_full_redis_is_not_retried_without_pause(
    own_redis, site_of
) -> None:
    """Rule 20: its next retry cannot be written to Redis, and yet it has to wait."""
    site = site_of(redis=own_redis(), retry={"attempts": 500, "delay": 0.1, "max_delay": 0.1})
    site.execute(
        FAILING
        + """
        create sequence tries;
        create function tried() returns trigger language plpgsql as $$
        begin
            perform nextval('tries');
            return new;
        end $$;
        create trigger each_try before insert on tape for each row execute function tried()"""
    )
    site.start()
    site.submit(write(1, "x"))
    site.parks(1)
    site.redis.config_set("maxmemory", 1)
    begin = site.one("select last_value from tries")
    end = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > end)
    tries = site.one("select last_value from tries") - begin
    assert tries < 60
    site.redis.config_set("maxmemory", 0)
    site.execute("delete from failing")
    site.commits(1)
    site.whole(1)


# Order (rules 24 and 28).


def test_a_key_has_one_lane_and_its_order_there(site_of) -> None:
    """Rule 24: the first key chooses the partition."""
    site = site_of(queues={"default": {"partitions": 4}})
    drain = site.drain()
    lanes: dict[str, set[str]] = {}
    for n in range(200):
        key = f"key {n % 10}"
        receipt = site.submit(write(n, key, keys=[key, "another"]))[0]
        lanes.setdefault(key, set()).add(receipt.lane)
    while any(site.depth(f"default:{p}") for p in range(4)):
        step(drain)

    assert all(len(names) == 1 for names in lanes.values())
    assert len(set().union(*lanes.values())) > 1
    for key in lanes:
        assert site.tape(key) == sorted(site.tape(key))
    assert len(site.tape()) == 200


def test_delayed_work_enters_its_lane_when_it_is_due(site: Site) -> None:
    """Rule 24: the order is that of entering the lane, not that of submitting."""
    site.start()
    site.submit(write(3, delay=0.6), write(2, delay=0.3), write(1))

    site.commits(1, 2, 3)

    site.whole(3)


def test_a_move_that_is_done_twice_applies_each_entry_once(site: Site) -> None:
    """Rule 28: put first, remove after; an entry that was put twice has one id."""
    drain = site.drain()
    step(drain)
    site.submit(*(write(n, delay=0.01) for n in range(1, 4)))
    bodies = site.redis.zrange(site.lane().scheduled, 0, -1)
    wait_until(lambda: delayed.move(drain.redis, site.lane(), time.time()) == 3)
    site.redis.zadd(site.lane().scheduled, dict.fromkeys(bodies, 1))
    delayed.move(drain.redis, site.lane(), time.time())
    assert site.depth() == 6

    step(drain)

    assert sorted(site.tape()) == [1, 2, 3]
    assert site.depth() == 0


@pytest.mark.parametrize("executed", [True, False], ids=["executed", "not executed"])
def test_a_move_whose_reply_is_lost_loses_nothing_and_applies_nothing_twice(
    executed: bool, proxy_to, redis_server, site_of
) -> None:
    """Rule 28."""
    proxy = proxy_to(redis_server)
    site = site_of(redis=proxy)
    lost = proxy.swallow(b"XADD", executed=executed)
    site.start()
    site.submit(*(write(n, delay=0.05) for n in range(1, 6)))
    lost.wait()

    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 4, 5])
    wait_until(lambda: not site.redis.zcard(site.lane().scheduled) and not site.depth())
    assert sorted(site.tape()) == [1, 2, 3, 4, 5]


# Pauses and weights.


def test_a_pause_takes_effect_while_the_backlog_never_ends(site_of) -> None:
    site = site_of(batch={"entries": 2})
    numbers = itertools.count()

    def never_ends() -> bool:
        while site.depth() < 5000:
            site.submit(*(write(next(numbers)) for _ in range(1000)))
        return True

    def status() -> str:
        return str(drain_thread.state()["lanes"]["default:0"]["status"])

    never_ends()
    site.start()
    wait_until(lambda: never_ends() and site.tape())

    site.redis.hset("processor:paused", "default", 0)

    wait_until(lambda: never_ends() and status() == "paused")
    assert site.depth() > 0
    site.redis.delete("processor:paused")


def test_a_lane_that_waits_for_a_table_lock_does_not_stop_the_others(site: Site) -> None:
    """Contention pauses one lane; `high` continues."""
    site.execute("create table other (n int)")
    site.start()
    with closing(psycopg2.connect(site.dsn)) as blocker:
        with blocker.cursor() as cursor:
            cursor.execute("lock table tape in access exclusive mode")
        site.submit(write(1))
        wait_until(lambda: drain_thread.state()["lanes"]["default:0"]["status"] == "paused")
        site.submit(*(Transaction(queue="high").insert("other", {"n": n}) for n in range(3)))
        wait_until(lambda: site.one("select count(*) from other") == 3)
    site.commits(1)


def test_ids_are_made_once_and_never_repeat(site: Site) -> None:
    """Rule 11: a repeated submit keeps the id."""
    transaction = Transaction()
    assert transaction.insert("tape", {"n": 1}).id == transaction.id
    assert len({new_id() for _ in range(1000)}) == 1000
    encoded = [transaction.encode(time.time(), 10_000) for _ in range(2)]
    assert encoded[0] == encoded[1]
