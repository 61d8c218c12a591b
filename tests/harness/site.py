"""A site for tests of failures: its buffer, its database with a tape, its processors, its load.

The *tape* records every effect: one row for each number `n`, in the order of execution, without a
constraint that would hide a doubled row. Each test of an outage ends with `Site.whole`.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import redis as redis_driver

from processor.buffer.lane import Lane
from processor.config import loader
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession as Session
from processor.drain.drain import Drain
from processor.embedded import PostgresServer, RedisServer
from processor.errors import BufferFull, RedisUnavailable
from processor.ledger import dead_letters, schema
from processor.producer.writer import Receipt, Writer
from processor.runtime import drain_thread
from processor.telemetry import metrics
from processor.telemetry.progress import Progress
from processor.transaction import statements
from processor.transaction.builder import Transaction
from tests.harness.process import Process, Spawn
from tests.harness.proxy import Proxy
from tests.harness.servers import Database, execute
from tests.harness.wait import wait_until

TAPE = """
create table if not exists tape (
    place bigint generated always as identity, n int not null, scope text,
    xid xid8 not null default pg_current_xact_id());
create table if not exists account (id int primary key, balance bigint not null default 0);
"""

#: The tape refuses the scopes in table `failing`, which are x.
FAILING = """
create table failing (scope text);
create function fail() returns trigger language plpgsql as $$
begin
    if new.scope in (select scope from failing) then
        raise exception 'not yet: %', new.scope;
    end if;
    return new;
end $$;
create trigger fail before insert on tape for each row execute function fail();
insert into failing values ('x');
"""

#: Short deadlines, so that a test does not wait long for a time-out.
SETTINGS: dict[str, Any] = {
    "redis": {"timeout": 0.5},
    "database": {
        "connect_timeout": 1.0, "call_timeout": 1.5, "statement_timeout": 1.0,
        "lock_timeout": 0.2, "takeover": 3.0,
    },
    "retry": {"attempts": 3, "delay": 0.1},
    "health": {"bind": ""},
    "watchdog": {"limit": 30.0},
    "stop_timeout": 10.0,
}  # fmt: skip

#: For the shared servers, which are always available: long deadlines, so that a pause of the
#: machine is not taken for an outage.
UNHURRIED: dict[str, dict[str, Any]] = {
    "redis": {"timeout": 10.0},
    "database": {"connect_timeout": 10.0, "call_timeout": 15.0, "takeover": 20.0},
}

PROGRAM = """
import json, logging, signal, sys, threading
from processor.config import loader
from processor.runtime import drain_thread
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
drain_thread.start(loader.load(json.loads(sys.argv[1]), environ={}))
print("started", flush=True)
done.wait()
sys.exit(0 if drain_thread.stop() else 1)
"""


class Load:
    """A producer that submits the numbers 1, 2, ... and repeats each until it is accepted.

    Every transaction has one attempt, so one that an outage spends becomes a dead letter.
    """

    def __init__(self, site: Site, pace: float, accepted: int) -> None:
        self._site, self._pace = site, pace
        self._producer = Writer(site.settings)
        self._ending = threading.Event()
        self.accepted = accepted
        self.refused = 0
        self._giving_up = False
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self._pace):
            self._submit(write(self.accepted + 1, attempts=1))

    def _submit(self, transaction: Transaction) -> None:
        encoded = transaction.encode(time.time(), 1_000_000)
        while not self._giving_up:
            try:
                self._producer.submit(encoded)
            except (RedisUnavailable, BufferFull):
                # Repeated even while ending, since the first try may have been accepted.
                self.refused += 1
                time.sleep(0.05)
            else:
                self.accepted += 1
                drain_thread.singleton.event.set()
                return

    def grow(self, by: int = 5, timeout: float = 10.0) -> None:
        """Wait until `by` more transactions are accepted."""
        goal = self.accepted + by
        wait_until(lambda: self.accepted >= goal, timeout, "the load is accepted")

    def end(self, timeout: float = 10.0) -> int:
        """Stop submitting; return the number of accepted transactions."""
        self._ending.set()
        self._thread.join(timeout)
        self._giving_up = True
        self._thread.join(10)
        self._producer.pool.close()
        return self.accepted


class Site:
    """One buffer and one database. `redis` and `execute` reach them directly, past all proxies."""

    def __init__(
        self, redis: RedisServer | Proxy, postgres: PostgresServer | Database | Proxy,
        settings: Mapping[str, Any], spawn: Spawn, *, name: str = "postgres",
    ) -> None:  # fmt: skip
        self._spawn = spawn
        server = redis.server if isinstance(redis, Proxy) else redis
        assert isinstance(server, RedisServer)
        self.redis = redis_driver.Redis.from_url(server.url, socket_timeout=5)
        through = postgres.server if isinstance(postgres, Proxy) else postgres
        self.dsn = through.dsn_of(name) if isinstance(through, PostgresServer) else through.dsn
        dsn = postgres.dsn_of(name) if isinstance(postgres, Proxy) else self.dsn
        own = {"redis": {"url": redis.url}, "database": {"dsn": dsn}}
        self.mapping = merged(SETTINGS, own, settings)
        self.settings: Settings = loader.load(self.mapping, environ={})
        self._loads: list[Load] = []
        self._drains: list[Drain] = []
        self._producer = Writer(self.settings)
        self.execute(schema.DDL + TAPE)

    # What a test does.

    def changed(self, **settings: Any) -> Settings:
        """Return the settings with changes."""
        return loader.load(merged(self.mapping, settings), environ={})

    def start(self, settings: Settings | None = None) -> None:
        """Start the processor of this process and wait until it owns its lanes."""
        drain_thread.start(settings or self.settings)
        wait_until(lambda: self.status == "running", message=lambda: str(drain_thread.state()))

    def run(self, *, wait: bool = True, **settings: Any) -> Process:
        """Start a processor as a separate program."""
        mapping = merged(self.mapping, settings)
        process = self._spawn(PROGRAM, json.dumps(mapping))
        if wait:
            process.expect("started")
        return process

    def drain(self, settings: Settings | None = None, instance: str = "stepped") -> Drain:
        """Make a drain without a thread, for a test that runs the passes itself."""
        statements.register((settings or self.settings).statements)
        drain = Drain(settings or self.settings, instance, Progress(), lambda: False)
        self._drains.append(drain)
        return drain

    def load(self, pace: float = 0.005, *, after: int = 0) -> Load:
        """Start a producer of the numbers behind `after`; it ends with the test."""
        self._loads.append(Load(self, pace, after))
        return self._loads[-1]

    def submit(self, *transactions: Transaction) -> list[Receipt]:
        """Submit in one write and wake the processor of this process."""
        limit = self.settings.buffer.transaction_bytes
        receipts = self._producer.submit_many([t.encode(time.time(), limit) for t in transactions])
        drain_thread.singleton.event.set()
        return receipts

    def put(self, fields: Mapping[Any, Any], lane: str = "default:0") -> str:
        """Add an entry to a lane without a producer, as any Redis client can."""
        entry_id = self.redis.xadd(self.lane(lane).stream, dict(fields))
        drain_thread.singleton.event.set()
        return str(entry_id.decode())

    def ask(self, transaction_id: str, request: str, edited: Transaction | None = None) -> None:
        """Request a decision on a dead letter, as an operator does."""
        session = Session(self.settings.database, Progress(), application="operator")
        session.connect()
        with closing(session):
            letter = dead_letters.find(session, transaction_id)[0]
            body = edited and edited.encode(time.time(), 1_000_000).body
            assert dead_letters.record_request(session, letter, request, body)
        drain_thread.singleton.event.set()

    # What a test sees.

    @property
    def status(self) -> str:
        """The status of the processor of this process."""
        return drain_thread.judged().status

    @property
    def reason(self) -> str:
        return drain_thread.judged().reason

    def lane(self, name: str = "default:0") -> Lane:
        return Lane(self.settings.namespace, name)

    def execute(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return execute(self.dsn, sql, parameters)

    def one(self, sql: str, parameters: Any = None) -> Any:
        """Return the first column of the first row."""
        return self.execute(sql, parameters)[0][0]

    def tape(self, scope: str | None = None) -> list[int]:
        """Return the numbers in the order in which they were written."""
        where = "" if scope is None else "where scope = %s"
        rows = self.execute(f"select n from tape {where} order by place", (scope,))
        return [n for (n,) in rows]

    def dead(self) -> list[tuple[str, str, str]]:
        """Return id, SQLSTATE and reason of each dead letter, in the order of acceptance."""
        return self.execute(
            "select id::text, sqlstate, reason from processor.dead_letter where outcome = 'dead'"
            " order by split_part(entry, '-', 1)::bigint, split_part(entry, '-', 2)::bigint"
        )

    def depth(self, lane: str = "default:0") -> int:
        """Return the number of entries in the stream of a lane."""
        return int(self.redis.xlen(self.lane(lane).stream))

    def parked(self, lane: str = "default:0") -> int:
        return int(self.redis.hlen(self.lane(lane).parked))

    # What a test waits for.

    def shows(self, status: str, timeout: float = 10.0) -> None:
        wait_until(
            lambda: self.status == status, timeout, lambda: f"{status}: {drain_thread.state()}"
        )

    def commits(self, *numbers: int, timeout: float = 10.0) -> None:
        """Wait until the tape has exactly these numbers."""
        wait_until(lambda: self.tape() == list(numbers), timeout, lambda: self.tale())

    def parks(self, count: int, timeout: float = 10.0) -> None:
        wait_until(lambda: self.parked() == count, timeout, lambda: f"{count}: {self.tale()}")

    def resumes(self, within: float = 2.0, since: float | None = None) -> None:
        """Wait until a batch that began after `since` (default: now) is committed."""
        since = time.time() if since is None else since
        left = within - (time.time() - since)
        new = "select exists (select from processor.ledger where committed_at > to_timestamp(%s))"
        wait_until(
            lambda: self.one(new, (since,)), left, lambda: f"a new commit; {self.tale()}",
            ignore=psycopg2.Error,
        )  # fmt: skip

    def empties(self, timeout: float = 20.0) -> None:
        """Wait until the stream is empty and nothing is parked."""
        wait_until(lambda: not self.depth() and not self.parked(), timeout, lambda: self.tale())

    def whole(self, accepted: int) -> None:
        """Check that 1 to `accepted` are committed once each, in order, without a dead letter."""
        self.empties()
        tape = self.tape()
        assert tape == list(range(1, accepted + 1)), story(tape, accepted)
        assert self.dead() == []
        torn = "select count(*) from tape t full join processor.ledger l using (xid)"
        torn += " where t.xid is null or l.xid is null"
        assert self.one(torn) == 0
        assert self.one("select count(*) from processor.ledger where outcome = 'applied'") == (
            accepted
        )

    def tale(self) -> str:
        """Describe the state, for the message of a wait that timed out."""
        return f"depth {self.depth()}, parked {self.parked()}, {drain_thread.state()}"

    def close(self) -> None:
        for load in self._loads:
            load.end(timeout=0.1)
        if not drain_thread.stop():
            drain_thread.abort()
            assert drain_thread.stop(), "the processor does not end"
        for drain in self._drains:
            drain.database.close()
            drain.redis.close()
        self._producer.pool.close()
        self.redis.close()
        statements._statements.clear()


#: Seconds to add to the clock of each pass: it then looks for lanes again, and a shut gate probes.
_later = itertools.count(2.0, 2.0)


def step(drain: Drain, *, looks: bool = True) -> None:
    """Run one pass; with `looks` at a time at which the pass looks for lanes again."""
    drain.run(time.monotonic() + (next(_later) if looks else 0.0))


def write(n: int, scope: str | None = None, **options: Any) -> Transaction:
    """Return a transaction that writes one number to the tape."""
    return Transaction(**options).insert("tape", {"n": n, "scope": scope})


def story(tape: list[int], accepted: int) -> str:
    """Describe what is wrong with a tape."""
    lost = set(range(1, accepted + 1)) - set(tape)
    doubled = {n for n in tape if tape.count(n) > 1} if len(tape) != len(set(tape)) else set()
    reordered = [n for n, after in itertools.pairwise(tape) if n > after]
    return (
        f"of {accepted}: lost {sorted(lost)[:9]} doubled {sorted(doubled)[:9]}"
        f" reordered at {reordered[:9]} strange {sorted(set(tape) - set(range(accepted + 1)))[:9]}"
    )


def merged(*mappings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings section by section; later mappings override earlier ones."""
    result: dict[str, Any] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            old = result.get(name)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            result[name] = {**old, **value} if both else value
    return result


def counted(name: str, **labels: str) -> Callable[[], int]:
    """Return a function that returns by how much a metric has grown since this call.

    Without labels it is the sum over all of them.
    """
    def value() -> float:
        return metrics.value(name, **labels) if labels else metrics.total(name)

    before = value()
    return lambda: int(value() - before)


@pytest.fixture
def site_of(
    redis_server: RedisServer, redis_url: str, database: Database, spawn: Spawn
) -> Iterator[Callable[..., Site]]:
    """`site_of(redis, postgres, **settings)`; without a server, the worker's shared one, empty."""
    made: list[Site] = []

    def make(
        redis: RedisServer | Proxy | None = None,
        postgres: PostgresServer | Database | Proxy | None = None,
        **settings: Any,
    ) -> Site:
        name = database.name if getattr(postgres, "server", None) is database.server else "postgres"
        own = {"redis": redis, "database": postgres} | settings
        limits = {part: limit for part, limit in UNHURRIED.items() if own[part] is None}
        settings = ({} if "watchdog" in settings else limits) | settings
        site = Site(redis or redis_server, postgres or database, settings, spawn, name=name)
        made.append(site)
        return site

    yield make
    for site in reversed(made):
        site.close()


@pytest.fixture
def site(site_of: Callable[..., Site]) -> Site:
    """A site on the worker's shared servers."""
    return site_of()
