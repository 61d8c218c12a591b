"""Faults of all kinds follow each other and overlap, and the tables show no trace of them.

Two processors share a lane behind a proxy to each server. Producers repeat a submit with the same
ids until it is accepted. A seed reproduces the order of the faults, though not their exact times.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
import redis as redis_driver

from processor.config import loader
from processor.embedded import PostgresServer, RedisServer
from processor.errors import BufferFull, RedisUnavailable
from processor.producer import writer
from tests.chaos.test_random_kills import Load, discarded_until_empty
from tests.harness import workload
from tests.harness.checker import Submitted
from tests.harness.process import Process, Spawn
from tests.harness.proxy import Proxy
from tests.harness.servers import Database
from tests.harness.wait import wait_until
from tests.harness.workload import Site, Work, parent

DURABLE = {"appendonly": True, "appendfsync": "always"}
AWAY = (psycopg2.Error, redis_driver.RedisError, RedisUnavailable, BufferFull)


class Persistent(Load):
    """Producers that submit the same transactions again after a refusal or an unknown outcome."""

    def _run(self, number: int, chance: random.Random) -> None:
        for turn in itertools.count():
            if self._ending.wait(chance.uniform(0, 0.04)):
                return
            some = [self._make(number, turn, n, chance) for n in range(chance.randrange(1, 12))]
            self.work[number] += some
            self.history[number] += self._accepted(some)

    def _accepted(self, some: list[Work]) -> list[Submitted]:
        encoded = [self.site.encoded(one) for one in some]
        certain = True
        while True:
            try:
                receipts = self.site.producer.submit_many(encoded)
            except (RedisUnavailable, BufferFull):
                # Some may have been accepted, with other entry ids than the next receipts have.
                certain = False
                time.sleep(0.05)
            else:
                submitted = map(workload.acknowledged, some, receipts)
                return [one if certain else replace(one, entry="") for one in submitted]


class World:
    """Two servers, two proxies, two processors; each fault begins, lasts and ends."""

    def __init__(
        self, site: Site, spawn: Spawn, redis: Proxy, postgres: Proxy, chance: random.Random
    ) -> None:
        self.site, self.spawn, self.redis, self.postgres = site, spawn, redis, postgres
        self.chance = chance
        self.faults: list[str] = []
        self.processors = [self._start(), self._start()]

    def _start(self) -> Process:
        process = self.site.start(self.spawn)
        process.expect("started")
        return process

    def last(self, longest: float) -> None:
        threading.Event().wait(self.chance.uniform(0.05, longest))

    def fault(self) -> None:
        """Choose a fault and run it from its beginning to its end."""
        faults = [name for name in dir(self) if name.startswith("fault_")]
        name = self.chance.choice(faults)
        self.faults.append(name)
        getattr(self, name)()

    # The network.

    def fault_black_hole(self) -> None:
        proxy = self.chance.choice([self.redis, self.postgres])
        proxy.hold(self.chance.choice(["up", "down", "both"]))  # type: ignore[arg-type]
        self.last(2.5)
        if self.chance.random() < 0.5:
            proxy.reset()
        proxy.release()

    def fault_resets(self) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            self.chance.choice([self.redis, self.postgres]).reset()
            self.last(0.3)

    def fault_cut_in_the_middle(self) -> None:
        proxy = self.chance.choice([self.redis, self.postgres])
        proxy.cut_after(self.chance.randrange(1, 20_000), self.chance.choice(["up", "down"]))
        self.last(0.5)

    def fault_off(self) -> None:
        proxy = self.chance.choice([self.redis, self.postgres])
        proxy.off()
        self.last(1.5)
        proxy.on()

    def fault_lost_answer(self) -> None:
        proxy, markers = self.chance.choice([
            (self.redis, [b"XADD", b"XDEL", b"XRANGE", b"ZADD", b"HSET"]),
            (self.postgres, [b"COMMIT;", b"processor_ledger", b"advisory", b"dead_letter"]),
        ])  # fmt: skip
        proxy.swallow(
            self.chance.choice(markers), self.chance.choice(["cut", "reset", "hold"]),
            executed=self.chance.random() < 0.7,
        )  # fmt: skip
        self.last(1.0)
        proxy.clear()

    # PostgreSQL.

    def fault_postgres_restarts(self) -> None:
        server = self._postgres
        if self.chance.random() < 0.5:
            server.kill()
        else:
            server.stop(self.chance.choice(["fast", "immediate"]))
        self.last(1.0)
        server.start()

    def fault_postgres_frozen(self) -> None:
        self._postgres.freeze()
        self.last(2.5)
        self._postgres.thaw()

    def fault_postgres_only_reads(self) -> None:
        self._postgres.reload({"default_transaction_read_only": True})
        self.last(1.0)
        self._postgres.reload({"default_transaction_read_only": False})

    def fault_sessions_ended(self) -> None:
        end = self.chance.choice(["pg_terminate_backend", "pg_cancel_backend"])
        for _ in range(self.chance.randrange(1, 6)):
            self._execute(
                f"select {end}(pid) from pg_stat_activity where application_name like 'processor%'"
            )
            self.last(0.2)

    def fault_table_locked(self) -> None:
        table = self.chance.choice(["effect", "processor.ledger", "processor.dead_letter",
                                    "processor.lane"])  # fmt: skip
        with suppress(psycopg2.Error), closing(psycopg2.connect(self._postgres.dsn)) as other:
            with other.cursor() as cursor:
                cursor.execute(f"lock table {table} in access exclusive mode")
            self.last(1.5)

    # Redis.

    def fault_redis_restarts(self) -> None:
        if self.chance.random() < 0.5:
            self._redis.kill()
        else:
            self._redis.stop()
        self.last(0.5)
        self._redis.start()

    def fault_redis_frozen(self) -> None:
        self._redis.freeze()
        self.last(2.5)
        self._redis.thaw()

    def fault_redis_full(self) -> None:
        for _ in range(self.chance.randrange(1, 6)):
            self.site.redis.config_set("maxmemory", 1)
            self.last(0.6)
            self.site.redis.config_set("maxmemory", 0)
            self.last(0.1)

    def fault_redis_only_reads(self) -> None:
        self.site.redis.config_set("min-replicas-to-write", 1)
        self.last(1.0)
        self.site.redis.config_set("min-replicas-to-write", 0)

    # Processors.

    def fault_processor_killed(self) -> None:
        number = self.chance.randrange(2)
        self.processors[number].kill()
        self.last(0.5)
        self.processors[number] = self._start()

    def fault_processor_stopped(self) -> None:
        number = self.chance.randrange(2)
        assert self.processors[number].terminate() == 0
        self.last(0.5)
        self.processors[number] = self._start()

    def fault_processor_frozen(self) -> None:
        process = self.chance.choice(self.processors)
        process.freeze()
        self.last(3.0)
        process.thaw()

    # The servers.

    @property
    def _postgres(self) -> PostgresServer:
        assert isinstance(self.postgres.server, PostgresServer)
        return self.postgres.server

    @property
    def _redis(self) -> RedisServer:
        assert isinstance(self.redis.server, RedisServer)
        return self.redis.server

    def _execute(self, sql: str) -> None:
        with suppress(psycopg2.Error):
            self.site.database.execute(sql)

    def output(self) -> str:
        """Return the last output of the processors and their published states."""
        keys = self.site.redis.scan_iter(f"{self.site.settings.namespace}:state:*")
        states = [str(self.site.redis.get(key)) for key in keys]
        return "\n".join([*(process.output[-3000:] for process in self.processors), *states])


@pytest.fixture
def world_of(
    own_redis: Any, own_postgres: Any, proxy_to: Any, spawn: Spawn
) -> Callable[[int], World]:
    def make(seed: int) -> World:
        postgres, redis = own_postgres(), own_redis(DURABLE)
        database = workload.prepare(Database(postgres, "postgres"))
        first, second = proxy_to(redis), proxy_to(postgres)
        site = Site(
            first.url, database, retry={"delay": 0.1, "max_delay": 0.5},
            database={
                "dsn": second.dsn_of("postgres"), "takeover": 1.5, "connect_timeout": 1.0,
                "call_timeout": 1.5, "statement_timeout": 1.0, "lock_timeout": 0.3,
            },
        )  # fmt: skip
        site.settings = loader.load(site.mapping | {
            "redis": {"url": first.url, "timeout": 0.5}
        })  # fmt: skip
        site.redis.close()
        site.redis = redis_driver.Redis.from_url(redis.url)
        return World(site, spawn, first, second, random.Random(seed))

    return make


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (1, 8),
        *(pytest.param(seed, 60, marks=[pytest.mark.soak, pytest.mark.timeout(600)])
          for seed in range(2, 8)),
    ],
)  # fmt: skip
def test_no_fault_leaves_a_trace_in_the_tables(
    seed: int, faults: int, world_of: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With retries inside `submit` the receipt could have the entry id of a copy.
    monkeypatch.setattr(writer, "_TRIES", 1)
    world = world_of(seed)
    site = world.site
    load = Persistent(site, seed)
    for turn in range(faults):
        if turn == faults // 2:
            site.history += load._accepted([parent(0)])
        world.fault()
    load.end()

    def story() -> str:
        return f"{world.faults}\n{site.findings(site.parked())}\n{world.output()}"

    everything = {one.id for one in site.history}
    wait_until(lambda: everything - site.decided() == site.parked(), 60, story, poll=0.05,
               ignore=AWAY)  # fmt: skip
    assert not site.findings(site.parked()), story()
    planted = {one.transaction.id for one in itertools.chain(*load.work) if one.fails}
    dead = {row[0] for row in site.database.execute("SELECT id::text FROM processor.dead_letter")}
    assert not dead - planted, story()

    wait_until(lambda: discarded_until_empty(site), 60, story, poll=0.1)
    assert [process.terminate() for process in world.processors] == [0, 0]
    assert not site.findings(), story()
    assert len(site.history) > 20 * faults, "too little work to show anything"
    site.close()
