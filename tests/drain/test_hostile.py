"""A hostile or careless producer harms nothing but its own entries.

Entries and members that another program put into Redis, tables without privileges, ids with two
payloads, work slower than the deadlines, servers that change roles: the lane continues, nothing is
lost or applied twice, and what cannot be applied becomes a dead letter.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from processor.apply import committer as session_module
from processor.apply.applier import Applier
from processor.connections.postgres_session import PostgresSession as Session
from processor.drain.drain import Drain
from processor.embedded import PostgresServer, RedisServer
from processor.errors import DatabaseUnavailable, RedisUnavailable
from processor.producer.writer import Writer
from processor.runtime import drain_thread
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from processor.transaction.entry import Entry
from processor.transaction.ids import new_id
from tests.harness import pages
from tests.harness.cli import Cli
from tests.harness.servers import Database
from tests.harness.site import FAILING, Site, counted, step, write
from tests.harness.wait import wait_until

MakeSite = Callable[..., Site]

#: The tape rejects rows of scope x.


def raw(*operations: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The fields of an entry that no producer would write."""
    return {"v": 1, "tx": json.dumps({"id": new_id(), "operations": operations, **more})}


# Tables that may not be looked up in the catalog.


@pytest.fixture
def guest(database: Database) -> Iterator[str]:
    """A role with the privileges that the processor needs, and usage on no other schema."""
    role = f"guest_of_{database.name}"
    database.execute(f"create role {role} login")
    yield role
    database.execute(f"drop owned by {role}; drop role {role}")


def test_a_table_without_privileges_fails_only_its_own_transactions(
    guest: str, database: Database, postgres_server: PostgresServer, site_of: MakeSite
) -> None:
    dsn = psycopg2.extensions.make_dsn(database.dsn, user=guest)
    site = site_of(database={"dsn": dsn}, retry={"attempts": 1})
    site.execute(
        "create schema audit; create table audit.log (n int);"
        f"grant usage on schema processor to {guest};"
        f"grant all on all tables in schema processor, public to {guest};"
        f"grant execute on all functions in schema processor to {guest}"
    )
    drain = site.drain()
    bad = Transaction().insert("audit.log", {"n": 1})
    site.submit(write(1), bad, write(2), write(3, queue="high"))
    tripled = site.put(raw({"op": "insert", "table": "a.b.c", "values": {"n": 1}}))
    site.submit(Transaction().insert("account", {"id": 1}), write(4))

    step(drain)
    step(drain)

    assert sorted(site.tape()) == [1, 2, 3, 4]
    assert site.one("select count(*) from account") == 1
    assert site.one("select sqlstate from processor.dead_letter where id = %s", (bad.id,)) == (
        "42501"
    )
    assert site.one("select count(*) from processor.dead_letter where entry = %s", (tripled,)) == 1
    assert (len(site.dead()), site.depth(), drain.gate.is_shut) == (2, 0, False)


# Two payloads of one id.


@pytest.mark.parametrize("request_", ["discard", "retry"])
def test_deciding_on_a_clash_leaves_the_parked_original_and_its_keys_line_alone(
    request_: str, site_of: MakeSite
) -> None:
    """Rule 15: the dead letter of a clash has the id of the original, which still waits."""
    site = site_of(retry={"attempts": 9, "delay": 0.5, "max_delay": 0.5})
    site.execute(FAILING)
    site.start()
    first = write(1, "x", key="k")
    site.submit(first)
    site.parks(1)
    site.submit(write(9, id=first.id, key="k"))
    wait_until(site.dead)
    site.submit(write(2, key="k"))
    site.parks(2)

    site.ask(first.id, request_)

    wait_until(lambda: site.one("select request from processor.dead_letter") is None)
    assert site.tape() == []
    assert first.id.encode() in site.redis.hkeys(site.lane().parked)
    site.execute("delete from failing")
    site.commits(1, 2)
    site.submit(write(3, key="k"))
    site.commits(1, 2, 3)
    site.empties()
    assert site.redis.zcard(site.lane().blocked) == 0


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
@pytest.mark.parametrize("key", [None, "k"])
def test_of_two_payloads_that_both_fail_the_second_clashes_and_the_first_is_tried_again(
    key: str | None, together: bool, site: Site
) -> None:
    site.execute(FAILING)
    drain = site.drain()
    first = write(1, "x", key=key)
    second = write(9, "x", id=first.id, key=key)
    for batch in [[first, second]] if together else [[first], [second]]:
        site.submit(*batch)
        step(drain)

    assert [(found, "another payload" in why) for found, _, why in site.dead()] == [
        (first.id, True)
    ]
    assert (site.depth(), site.parked()) == (0, 1)
    site.execute("delete from failing")
    wait_until(lambda: (step(drain), site.tape() == [1])[1], message=site.tale)
    assert site.parked() == 0


# What another program put into Redis.

EVIL = "}'::uuid[]); delete from account; select id::text, outcome, 'x' from processor.ledger --"
OPEN = "0000000000000001-00000000000000000000"


def evil_line(site: Site) -> None:
    site.redis.zadd(site.lane().blocked, {f"k\0{OPEN}\0{EVIL}": 0, EVIL: 0, b"\xff\0\0": 0})


def evil_record(site: Site) -> None:
    for found in (EVIL, f"1-1\n0\n{EVIL}", f"1-1\n0\n{raw()['tx']}", "\0", b"\xff"):
        name = new_id()
        site.redis.hset(site.lane().parked, name, found)
        site.redis.zadd(site.lane().retry, {name: 0})
    site.redis.hset(site.lane().parked, EVIL, EVIL)
    site.redis.zadd(site.lane().retry, {EVIL: 0, b"\xff": 0})


def stranger_in_a_record(site: Site) -> None:
    """A valid record under the id of another transaction."""
    body = write(77).encode(0.0, 1 << 20).body
    name = new_id()
    site.redis.hset(site.lane().parked, name, b"1-1\n0\n" + body)
    site.redis.zadd(site.lane().retry, {name: 0})


def evil_identity(site: Site) -> None:
    site.redis.set(f"{site.settings.namespace}:buffer", f"' or true; delete from account; --{EVIL}")


PLANTED = [evil_line, evil_record, stranger_in_a_record, evil_identity]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_another_program_put_into_redis_reaches_no_sql_and_stops_no_lane(
    plant: Callable[[Site], None], site: Site
) -> None:
    site.execute("insert into account values (1)")
    site.execute(FAILING)
    defects = counted("verdicts", verdict="defect")
    plant(site)
    site.start()
    plant(site)

    site.submit(write(0, "x", key="k", attempts=1), write(1, key="k"), write(2, key="other"))
    site.submit(write(3), write(4, queue="high"))

    wait_until(lambda: {2, 3, 4} <= set(site.tape()) and site.dead(), message=site.tale)
    wait_until(lambda: site.depth() == 0, message=site.tale)
    site.ask(site.dead()[-1][0], "discard")
    wait_until(lambda: 1 in site.tape(), message=site.tale)
    wait_until(lambda: not site.redis.zcount(site.lane().retry, "-inf", time.time()))
    assert site.one("select count(*) from account") == 1
    assert sorted(site.tape()) == [1, 2, 3, 4]
    assert defects() == 0


def deep(levels: int) -> list[Any]:
    made: list[Any] = [1]
    for _ in range(levels - 1):
        made = [made]
    return made


#: By name: an operation that every submit would refuse.
HARMFUL: dict[str, dict[str, Any]] = {
    "all rows deleted": {"op": "delete", "table": "account", "where": {}},
    "all rows set": {"op": "update", "table": "account", "set": {"balance": 9}, "where": {}},
    "all rows added to": {"op": "update", "table": "account", "add": {"balance": 9}, "where": {}},
    "an array of many dimensions": {"op": "insert", "table": "deep", "values": {"a": deep(400)}},
    "json of many levels": {"op": "insert", "table": "deep", "values": {"j": deep(400), "a": 1}},
    "a table of three names": {"op": "delete", "table": "a.b.c", "where": {"id": 1}},
}


@pytest.mark.parametrize("several", [1, 5])
def test_harmful_entries_become_dead_letters_and_no_row_is_lost(
    several: int, site_of: MakeSite
) -> None:
    site = site_of(retry={"attempts": 1})
    site.execute("insert into account select n, 0 from generate_series(1, 3) n;"
                 "create table deep (a int[], j jsonb)")  # fmt: skip
    drain = site.drain()
    number = 0
    for operation in HARMFUL.values():
        for _ in range(several):
            site.put(raw(operation))
        site.submit(write(number := number + 1))
        step(drain)

    step(drain)

    assert site.tape() == list(range(1, number + 1))
    assert site.execute("select id, balance from account order by id") == [(1, 0), (2, 0), (3, 0)]
    assert (len(site.dead()), site.depth()) == (several * len(HARMFUL), 0)


# What a session holds on to.


def test_values_that_do_not_fit_leave_no_prepared_statements_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time names are looked up again, and everything is prepared under new names."""
    monkeypatch.setattr(session_module, "_REFRESH_INTERVAL", 0.0)
    site.execute("create table small (id int, v smallint)")
    drain = site.drain()
    counts = []
    for n in range(12):
        fits = [Transaction().insert("small", {"id": i, "v": 1}) for i in range(3)]
        site.submit(*fits, Transaction().insert("small", {"id": 9, "v": 99_999}), write(n))
        step(drain)
        counts.append(drain.database.run("select count(*) from pg_prepared_statements")[0][0])

    assert len(site.dead()) == 12
    assert site.tape() == list(range(12))
    assert max(counts) <= 12, counts


# Slow work.

NAP = {"nap": "select pg_sleep(%(s)s)"}


def test_a_transaction_gets_the_time_limit_that_it_sets(site_of: MakeSite) -> None:
    """Its own limit is longer than the deadline of a call."""
    site = site_of(statements=NAP, database={"call_timeout": 1.0, "statement_timeout": 0.4})
    drain = site.drain()
    slow = write(2, timeout=10, attempts=1).statement("nap", {"s": 1.4})
    site.submit(write(1, attempts=1), slow, write(3, attempts=1))

    step(drain)

    assert drain.database.generation == 1
    site.whole(3)


def test_a_batch_of_slow_statements_is_halved_until_it_fits_the_deadline(
    site_of: MakeSite,
) -> None:
    # Ten take longer than the deadline of a call; five take little more than half of it, so that
    # they fit even on a slow machine.
    site = site_of(statements=NAP, database={"call_timeout": 3.0, "statement_timeout": 2.4})
    drain = site.drain()
    site.submit(*(write(n, attempts=1).statement("nap", {"s": 0.32}) for n in range(1, 11)))
    for _ in range(30):
        step(drain)
        if not site.depth():
            break

    site.whole(10)
    # Ten were too many, which was learned from one lost session.
    assert drain.database.generation == 2


def test_a_crasher_is_condemned_only_if_the_server_commits_without_it(
    own_postgres: Callable[..., PostgresServer], site_of: MakeSite
) -> None:
    """A server that answers but waits for its standby is an outage, not the entry's fault."""
    server = own_postgres()
    site = site_of(postgres=server, database={"call_timeout": 1.0, "statement_timeout": 0.8})
    drain = site.drain()
    step(drain)
    site.execute("alter system set synchronous_standby_names = 'nobody'")
    site.execute("select pg_reload_conf()")
    # The drain's own session has to apply the setting, which a session does when idle.
    shown = "show synchronous_standby_names"
    wait_until(lambda: drain.database.run(shown) == [("nobody",)])
    one = write(1, attempts=1)
    site.submit(one)
    drain.owners.lanes["default:0"].health.condemned = one.id

    step(drain)
    step(drain)

    assert drain.gate.is_shut
    site.execute("alter system reset synchronous_standby_names")
    site.execute("select pg_reload_conf()")
    wait_until(lambda: (step(drain), site.tape() == [1])[1], message=site.tale)
    site.whole(1)


def test_a_condemned_entry_that_was_committed_is_no_dead_letter(site: Site) -> None:
    drain = site.drain()
    one = write(1)
    site.submit(one)
    step(drain)
    site.submit(one)
    drain.owners.lanes["default:0"].health.condemned = one.id

    step(drain)
    step(drain)

    site.whole(1)


# Large work, and much of it.


def test_a_page_is_never_larger_than_a_batch_may_be(
    site_of: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small entries before them lower the expected size."""
    site = site_of(batch={"bytes": 100_000}, buffer={"transaction_bytes": 100_000})
    site.execute("create table thick (t text)")
    sizes: list[int] = []
    apply = Applier.apply

    def measured(self: Any, owner: Any, entries: list[Entry], *rest: Any, **named: Any) -> Any:
        sizes.append(sum(len(entry.body) for entry in entries))
        return apply(self, owner, entries, *rest, **named)

    monkeypatch.setattr(Applier, "apply", measured)
    drain = site.drain()
    site.submit(*(write(n) for n in range(1, 501)))
    site.submit(*(Transaction().insert("thick", {"t": "x" * 30_000}) for _ in range(60)))
    thick = Transaction().insert("thick", {"t": "x" * 150_000})
    site.put({"v": 1, "tx": thick.encode(0.0, 1 << 20).body})
    site.submit(write(501))

    wait_until(lambda: (step(drain), not site.depth())[1], message=site.tale)

    assert site.tape() == list(range(1, 502))
    assert site.one("select count(*) from thick") == 61
    assert sorted(sizes)[-2] <= 100_000 < sorted(sizes)[-1] < 151_000


def test_pauses_and_due_entries_are_noticed_during_a_backlog(site_of: MakeSite) -> None:
    site = site_of(batch={"entries": 1})
    site.start()
    load = [write(n) for n in range(1, 5_001)]
    for start in range(0, len(load), 1_000):
        site.submit(*load[start : start + 1_000])
    site.submit(write(0, "due", queue="high", delay=0.2))

    wait_until(lambda: site.tape("due"), message=site.tale)
    assert site.depth() > 100, "the backlog was over before"

    site.redis.hset(f"{site.settings.namespace}:paused", "default", 0)
    wait_until(lambda: drain_thread.state()["lanes"]["default:0"]["status"] == "paused")
    left = site.depth()
    assert left > 100, "the backlog was over before"
    site.submit(write(0, "after", queue="high"))
    wait_until(lambda: site.tape("after"), message=site.tale)
    assert site.depth() == left


# Servers that change roles, and passes that fail.


def test_after_a_connect_that_times_out_the_session_before_it_is_still_ended(
    site_of: MakeSite, proxy_to: Callable[..., Any], postgres_server: PostgresServer
) -> None:
    """It may still hold its locks, and the next session has to end it."""
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    settings = dataclasses.replace(
        site.settings.database, connect_timeout=0.3, call_timeout=0.3,
        takeover=60.0,  # so that the server does not end it first
    )  # fmt: skip
    session = Session(settings, Progress(), application="cut")
    with closing(session):
        session.connect()
        # From here on nothing reaches it from its client.
        pid = session.run("select pg_backend_pid()")[0][0]
        proxy.hold()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                session.run("select 1") if session.alive else session.connect()
        there = f"select count(*) from pg_stat_activity where pid = {pid}"
        assert site.one(there) == 1
        session._settings = dataclasses.replace(settings, dsn=site.dsn)

        session.connect()

        wait_until(lambda: site.one(there) == 0)


def test_a_producer_leaves_a_redis_that_is_no_longer_the_master(
    own_redis: Callable[..., RedisServer], site_of: MakeSite
) -> None:
    """The host name may resolve to another server by now."""
    server = own_redis()
    site = site_of(redis=server)
    producer = Writer(site.settings)
    encoded = write(1).encode(time.time(), 1 << 20)
    others = {c["id"] for c in site.redis.client_list()}
    producer.submit(encoded)
    [mine] = {c["id"] for c in site.redis.client_list()} - others
    site.redis.replicaof("127.0.0.1", "1")

    with pytest.raises(RedisUnavailable, match="READONLY"):
        producer.submit(encoded)

    wait_until(lambda: mine not in {c["id"] for c in site.redis.client_list()})
    assert {c["id"] for c in site.redis.client_list()} <= others
    site.redis.replicaof("NO", "ONE")
    producer.submit(encoded)
    assert site.depth() == 2
    producer.pool.close()


@pytest.mark.parametrize("where", ["run", "_drain"])
def test_passes_that_fail_are_no_progress(
    where: str, site_of: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 31: even if each of them reconnects before it fails."""
    site = site_of(watchdog={"limit": 2.5}, interval=0.1)
    site.start()

    def fail(*_: Any) -> float:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(Drain, where, fail)
        site.shows("stuck")

    site.submit(write(1))
    site.commits(1)
    site.shows("running")


def fail(*_: Any) -> float:
    raise KeyError(EVIL)


def published(cli: Cli) -> list[tuple[str, str]]:
    """Status and reason of each processor, as published."""
    (status,) = cli("status", "--json").records
    each = [processor["background_processor"] for processor in status["processors"]]
    return [(one["status"], one["reason"]) for one in each]


def test_health_and_status_report_a_failed_pass_as_a_failed_pass(
    cli: Cli, site_of: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither reports a standby or a stopped processor; the lanes are given up."""
    site = site_of(interval=0.1)
    cli.use(site.mapping)
    site.start()

    with monkeypatch.context() as patch:
        patch.setattr(Drain, "_drain", fail)
        wait_until(lambda: "a pass failed" in site.reason, message=site.tale)
        said = site.reason
        assert "KeyError at test_hostile.py:" in said
        assert EVIL not in said
        assert site.status == "running"
        wait_until(
            lambda: published(cli) == [("running", said)], message=lambda: str(published(cli))
        )
        assert pages.sample("owner", lane="default:0") == 0

    wait_until(lambda: (site.status, site.reason) == ("running", ""), message=site.tale)
    wait_until(lambda: published(cli) == [("running", "")], message=lambda: str(published(cli)))
    site.submit(write(1))
    site.commits(1)
    wait_until(lambda: pages.sample("owner", lane="default:0") == 1)
    assert drain_thread.stop()
    assert pages.sample("owner", lane="default:0") is None


def test_passes_that_fail_for_long_are_published_as_stuck(
    cli: Cli, site_of: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(watchdog={"limit": 2.5}, interval=0.1)
    cli.use(site.mapping)
    site.start()
    monkeypatch.setattr(Drain, "_drain", fail)

    wait_until(lambda: [word for word, _ in published(cli)] == ["stuck"], message=site.tale)
    assert cli("status").code == 1
    site.shows("stuck")
    assert "a pass failed" in site.reason
