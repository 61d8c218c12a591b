"""Who owns a lane: one processor, fenced inside every commit, replaced when it is frozen (P6).

Where processors are frozen they are programs of their own. Where a test controls each pass they are
drains without a thread.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from processor.drain.drain import Drain
from processor.errors import DatabaseError
from processor.ledger import lane_rows
from processor.ledger.lane_rows import Ownership
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.process import Process
from tests.harness.servers import execute
from tests.harness.site import UNHURRIED, Site, counted, step, write
from tests.harness.wait import wait_until

LANES = {"high:0", "default:0", "low:0"}


def owner_of(site: Site, lane: str = "default:0") -> tuple[int, int]:
    """Process id and epoch of the owner, from the lane's row."""
    rows = site.execute("select instance, epoch from processor.lane where lane = %s", (lane,))
    return (int(rows[0][0].split(":")[1]), rows[0][1]) if rows else (0, 0)


def published(site: Site, process: Process, figure: str = "status") -> Any:
    """One figure of the state that a processor published in Redis."""
    for key in site.redis.scan_iter("processor:state:*"):
        if f":{process.pid}:" in key.decode() and (found := site.redis.get(key)):
            return json.loads(found)["background_processor"][figure]
    return None


def owned(drain: Drain) -> set[str]:
    return {lane.lane.name for lane in drain.owners.owned}


def ownership_of(drain: Drain) -> Ownership:
    ownership = drain.owners.lanes["default:0"].owner
    assert ownership is not None
    return ownership


def release_locks(drain: Drain) -> None:
    """Release its advisory locks without its knowledge, as a failover that it survives does."""
    drain.database.run("SELECT pg_advisory_unlock_all()")


# A frozen owner.


def test_a_frozen_owner_is_replaced_within_seconds_and_stands_by_when_it_wakes(site_of) -> None:
    """Rule 4: a frozen process keeps its connection, and with it the lock, indefinitely."""
    site = site_of(database={"takeover": 1.0}, interval=20.0)
    frozen = site.run()
    wait_until(lambda: owner_of(site)[0] == frozen.pid)
    standby = site.run()
    wait_until(lambda: published(site, standby) == "standby")
    load = site.load()
    load.grow(50)

    frozen.freeze()
    begun = time.monotonic()
    wait_until(lambda: owner_of(site)[0] == standby.pid, timeout=3.0)
    site.resumes(within=4.0 - (time.monotonic() - begun))
    load.grow(50)
    frozen.thaw()
    wait_until(lambda: published(site, frozen) == "standby", message=lambda: frozen.output)
    load.grow(50)

    site.whole(load.end())
    assert owner_of(site)[0] == standby.pid
    assert standby.terminate() == 0
    wait_until(lambda: owner_of(site)[0] == frozen.pid, timeout=3.0)


def test_a_batch_that_commits_while_its_owner_is_frozen_is_settled_by_the_next_owner(
    site_of,
) -> None:
    """The batch continues in the server; the next owner finds it in the ledger and settles it."""
    site = site_of(
        database={
            "takeover": 1.0, "lock_timeout": 8.0, "statement_timeout": 9.0, "call_timeout": 9.5,
        },
        watchdog={"limit": 30.0},
    )  # fmt: skip
    frozen = site.run()
    wait_until(lambda: owner_of(site)[0] == frozen.pid)
    standby = site.run()
    with closing(psycopg2.connect(site.dsn)) as other:
        with other.cursor() as cursor:
            cursor.execute("lock table tape in access exclusive mode")
        site.submit(*(write(n) for n in range(1, 11)))
        # The batch has begun. The standby may wait for a lock as well.
        waiting = (
            "select exists (select from pg_locks where not granted and relation = 'tape'::regclass)"
        )
        wait_until(lambda: site.one(waiting))

        frozen.freeze()
    site.commits(*range(1, 11))
    site.empties(timeout=4.0)
    wait_until(lambda: published(site, standby, "already_applied") == 10)

    frozen.thaw()
    site.submit(*(write(n) for n in range(11, 21)))
    site.whole(20)
    assert owner_of(site)[0] == standby.pid


def test_an_idle_owner_touches_the_server_whatever_the_interval(site_of) -> None:
    """Rule 4: at least every third of `takeover`, or the server would take it for frozen."""
    site = site_of(database={"takeover": 20.0}, interval=20.0)
    drain = site.drain()
    step(drain)
    calls, end = drain.database.calls, time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() > end)

    delay = drain.run(time.monotonic())

    assert drain.database.calls > calls
    assert delay <= 20.0 / 3


def test_the_session_has_the_server_end_it_when_it_goes_silent(site_of) -> None:
    """Rules 4, 6 and 18, by the settings that the server reports."""
    site = site_of(database={"takeover": 3.0})
    drain = site.drain()
    step(drain)
    shown = {
        name: drain.database.run(f"SHOW {name}")[0][0]
        for name in (
            "idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout",
            "lock_timeout", "client_connection_check_interval", "standard_conforming_strings",
            "search_path", "application_name",
        )
    }  # fmt: skip

    assert shown == {
        "idle_session_timeout": "3s",
        "idle_in_transaction_session_timeout": "3s",
        "statement_timeout": "1s",
        "lock_timeout": "200ms",
        "client_connection_check_interval": "1s",
        "standard_conforming_strings": "on",
        "search_path": "public",
        "application_name": "processor stepped",
    }


# The fence.


def test_an_owner_that_does_not_know_that_it_lost_its_lanes_is_fenced(site: Site) -> None:
    """Rules 2, 3 and 5: it commits nothing, writes no dead letter and stands by."""
    old, new = site.drain(instance="old"), site.drain(instance="new")
    step(old)
    release_locks(old)
    step(new)
    assert owned(old) == owned(new) == LANES
    site.submit(*(write(n, attempts=1) for n in range(1, 6)))
    fenced = counted("fenced")

    step(old, looks=False)

    assert fenced() == 1
    assert "default:0" not in owned(old)
    assert site.tape() == []
    assert site.depth() == 5
    step(old)
    assert "default:0" not in owned(old)
    step(new)
    site.whole(5)


def test_an_owner_with_the_same_epoch_and_another_token_is_fenced(site: Site) -> None:
    """Rule 2: another processor may reuse an epoch number that a failover lost."""
    drain = site.drain()
    step(drain)
    site.execute("update processor.lane set token = gen_random_uuid()")
    site.submit(write(1, attempts=1))
    fenced = counted("fenced")

    step(drain, looks=False)

    assert fenced() == 1
    assert site.tape() == []
    assert site.dead() == []


def test_a_fenced_owner_writes_no_dead_letter(site: Site) -> None:
    """Rules 5 and 15: dead letters are fenced as well."""
    drain = site.drain()
    step(drain)
    site.execute("update processor.lane set epoch = epoch + 1")
    site.put({"what": "no transaction"})

    step(drain, looks=False)

    assert site.dead() == []
    assert site.depth() == 1


def test_a_new_owner_waits_until_the_batch_of_the_old_one_is_decided(site: Site) -> None:
    """Rule 3: a fence that only reads lets a paused old owner commit after the new one."""
    old, new = site.drain(instance="old"), site.drain(instance="new")
    step(old)
    release_locks(old)
    ownership = ownership_of(old)
    old.database.run(f"BEGIN; {lane_rows.fence(ownership, 1)} SELECT 1")

    step(new)
    assert owned(new) == LANES - {"default:0"}
    # It releases the lock, so that any processor can take the lane once it is free.
    assert site.one("select count(*) from pg_locks where locktype = 'advisory'") == len(LANES) - 1
    old.database.run("INSERT INTO tape (n) VALUES (1); COMMIT")
    step(new)

    assert owned(new) == LANES
    assert ownership_of(new).epoch == ownership.epoch + 1
    with pytest.raises(DatabaseError) as refused:
        old.database.run(lane_rows.fence(ownership, 1))
    assert refused.value.sqlstate == "PR001"


def test_every_acquisition_raises_the_epoch_also_by_the_same_process(site: Site) -> None:
    """Rule 2: only a new epoch decides what became of the last batch of the session before."""
    site.start()
    before = owner_of(site)
    site.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'processor %'"
    )
    site.submit(write(1))
    site.commits(1)

    assert owner_of(site) == (before[0], before[1] + 1)


def test_a_stopped_processor_gives_its_lanes_to_the_next_one_at_once(site: Site) -> None:
    first, second = site.drain(instance="first"), site.drain(instance="second")
    step(first)
    step(second)
    assert (owned(first), owned(second)) == (LANES, set())

    first.leave()
    step(second)

    assert owned(second) == LANES


# Identity.


def test_two_sites_with_the_same_names_write_into_one_database(site_of, own_redis) -> None:
    """Rule 1: lock, epoch and ledger are keyed by (buffer, lane); neither site is a standby."""
    here, there = site_of(), site_of(redis=own_redis())
    drains = [here.drain(), there.drain()]
    for each, drain in zip((here, there), drains, strict=True):
        each.submit(*(write(n) for n in range(1, 4)))
        step(drain)

    assert [owned(drain) for drain in drains] == [LANES, LANES]
    assert sorted(here.tape()) == [1, 1, 2, 2, 3, 3]
    assert here.one("select count(distinct buffer) from processor.ledger") == 2


def test_a_buffer_that_lost_its_identity_is_reported_and_continues_under_a_new_one(
    site: Site, caplog
) -> None:
    """Rule 1: never silently a new start."""
    site.start()
    site.submit(write(1))
    site.commits(1)

    site.redis.flushall()
    wait_until(lambda: "identity" in loss(site), message=lambda: loss(site))

    assert "loss window" in caplog.text
    site.submit(write(2))
    site.commits(1, 2)
    now = site.redis.get("processor:buffer").decode()
    assert site.execute("select buffer::text = %s from processor.ledger order by id", (now,)) == [
        (False,), (True,)
    ]  # fmt: skip


def loss(site: Site) -> str:
    return str(drain_thread.state()["background_processor"]["loss"])


# The session.


@pytest.mark.parametrize(
    ("true_pid", "size"),
    [(False, 2), (True, 2)],
    ids=["a pid of its own", "the first session's pid"],
)
def test_a_transaction_pooler_is_detected_and_refused(
    true_pid: bool, size: int, pooler_to, postgres_server, site_of, database
) -> None:
    """Rule 6: behind one, a second processor would hold the same advisory lock."""
    pooler = pooler_to(postgres_server, true_pid=true_pid, size=size)
    site = site_of(database={"dsn": pooler.dsn_of(database.name)})
    drain = site.drain()
    site.submit(write(1))

    step(drain)

    assert "pooler" in drain.gate.reason
    assert "database.dsn" in drain.gate.reason
    assert owned(drain) == set()
    assert site.tape() == []


UNUSUAL = {
    "DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard", "TimeZone": "'Asia/Kolkata'",
    "standard_conforming_strings": "off", "extra_float_digits": "-10", "array_nulls": "off",
    "client_encoding": "LATIN1", "default_transaction_isolation": "serializable",
    "statement_timeout": "100", "lock_timeout": "1", "xmloption": "document",
}  # fmt: skip


def test_settings_of_the_role_or_database_change_nothing(site: Site, database) -> None:
    """Rule 6: the session pins every setting that would change the meaning of a text."""
    site.execute(
        "create table kept (d date, i interval, t timestamptz, x float8, s text, a text[])"
    )
    row: dict[str, Any] = {
        "d": "2026-02-03",
        "i": "P1DT2H",
        "t": "2026-02-03T04:05:06Z",
        "x": 0.1 + 0.2,
        "s": "back\\slash' \u00e9 \u4e2d",
        "a": ["x", None],
    }
    for name, value in UNUSUAL.items():
        execute(database.server.dsn, f"alter database {database.name} set {name} = {value}")
    drain = site.drain()
    site.submit(Transaction().insert("kept", row))

    step(drain)

    # From another database, since these limits apply to every new session of this one.
    for name in UNUSUAL:
        execute(database.server.dsn, f"alter database {database.name} reset {name}")
    assert site.execute(
        "select d = '2026-02-03', i = '26 hours', t = '2026-02-03T04:05:06Z', x, s, a from kept"
    ) == [(True, True, True, 0.1 + 0.2, row["s"], row["a"])]


# Lanes.


def test_lanes_that_left_the_configuration_are_drained(site_of) -> None:
    """Rule 7: the lanes of a removed queue, and of removed partitions."""
    before = {"nightly": {"partitions": 4}, "old": {}}
    site = site_of(queues=before)
    keys = [f"key {n}" for n in range(20)]
    site.submit(*(write(n, queue="nightly", key=keys[n]) for n in range(20)))
    site.submit(write(20, queue="old"))
    used = {name.decode() for name in site.redis.smembers("processor:lanes")}
    assert used == {"old:0", "nightly:0", "nightly:1", "nightly:2", "nightly:3"}

    drain = site.drain(site.changed(queues={"nightly": {"partitions": 1}, "old": None}))
    step(drain)

    assert sorted(site.tape()) == list(range(21))
    assert sum(map(site.depth, used)) == 0


def test_a_lane_that_is_new_is_found_while_the_processor_runs(site_of) -> None:
    """Rule 7: producers may be configured before the processor is."""
    site = site_of(queues={"fresh": {}})
    drain = site.drain(site_of().settings)
    step(drain)
    site.submit(write(1, queue="fresh"))

    step(drain)

    assert site.tape() == [1]


def test_lanes_of_other_processors_delay_no_batch_over_a_long_link(
    site_of, proxy_to, postgres_server
) -> None:
    """Trying to take all of them takes longer than the time that a pass gives its batches."""
    proxy = proxy_to(postgres_server)
    others = {f"other{n}": {} for n in range(8)}
    step(site_of(queues=others).drain())
    unhurried = {"database": UNHURRIED["database"]}
    site = site_of(postgres=proxy, queues={**others, "mine": {}}, **unhurried)
    site.submit(write(1, queue="mine"))
    drain = site.drain()
    proxy.latency(0.15)

    drain.run(time.monotonic())

    assert "mine:0" in owned(drain)
    assert not owned(drain) & {f"{name}:0" for name in others}
    assert site.tape() == [1]


# The Redis that is written to.


def test_a_replica_of_redis_is_refused_before_any_lane_is_taken(own_redis, site_of) -> None:
    """Reading from it works, so entries were committed and could not be removed."""
    primary = own_redis()
    site_of(redis=primary).submit(write(1))
    replica = own_redis()
    site = site_of(redis=replica)
    site.redis.replicaof("127.0.0.1", primary.port)
    wait_until(lambda: site.redis.info("replication")["master_link_status"] == "up")
    takeovers = counted("takeovers")
    drain = site.drain()
    for _ in range(3):
        step(drain)
        assert drain.gate.is_shut
    assert drain.state().reason == (
        "the Redis of redis.url is a replica and rejects writes (point redis.url at the primary)"
    )
    assert takeovers() == 0
    assert site.tape() == []
    site.redis.replicaof("NO", "ONE")
    wait_until(lambda: step(drain) or site.tape() == [1])
