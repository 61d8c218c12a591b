"""Work for a processor that is killed or disturbed, and the tables that show the result.

A `Site` is one buffer and the database that it drains into. It submits, keeps the receipts, starts
processors as separate programs, and passes the contents of the tables to `checker`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis as redis_driver

from processor.buffer.lane import Lane
from processor.config import loader
from processor.connections.postgres_session import PostgresSession as Session
from processor.ledger import dead_letters
from processor.ledger.schema import DDL
from processor.producer.writer import Receipt, Writer
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded
from processor.transaction.ids import new_id
from tests.harness.checker import Dead, Effect, Findings, Known, Submitted, check
from tests.harness.process import Process, Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until

# Nothing is unique here, so that a doubled effect is visible.
TABLES = """
CREATE TABLE effect (
    id uuid NOT NULL,
    part int NOT NULL,
    amount int NOT NULL DEFAULT 1 CONSTRAINT positive CHECK (amount > 0),
    position bigint GENERATED ALWAYS AS IDENTITY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (parent int NOT NULL REFERENCES parent);
"""

ORPHANED = 1_000_000

PROCESSOR = """
import json, logging, signal, sys
import processor

logging.basicConfig(level="INFO")
processor.configure(json.loads(sys.argv[1]))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
processor.start()
print("started")
signal.sigwait([signal.SIGTERM])
print("stopped" if processor.stop() else "stopped too late")
"""


@dataclass(frozen=True, slots=True)
class Work:
    """A transaction and its planned outcome."""

    transaction: Transaction
    keys: tuple[str, ...] = ()
    poison: bool = False
    fails: bool = False
    delayed: bool = False


def plain(*keys: str, **options: Any) -> Work:
    """An effect of two rows."""
    return _work(keys, {}, **options)


def poison(*keys: str) -> Work:
    """Always fails, after its first row."""
    return _work(keys, {"amount": -1}, poison=True, fails=True)


def nowhere() -> Work:
    """Always fails, before anything is sent."""
    made = Transaction()
    made.insert("effect", {"id": made.id, "part": 0}).insert("nowhere", {"id": 1})
    return Work(made, poison=True, fails=True)


def child(parent: int, *keys: str) -> Work:
    """Fails until its parent row exists."""
    work = _work(keys, {}, fails=True, attempts=20)
    work.transaction.insert("child", {"parent": parent})
    return work


def orphan(*keys: str) -> Work:
    """Fails, is retried once, and dies: its parent row never exists."""
    work = _work(keys, {}, poison=True, fails=True, attempts=2)
    work.transaction.insert("child", {"parent": ORPHANED})
    return work


def parent(number: int) -> Work:
    """Inserts the parent row that a child waits for."""
    work = plain()
    work.transaction.insert("parent", {"id": number})
    return work


def _work(
    keys: tuple[str, ...], more: dict[str, Any], *, poison: bool = False, fails: bool = False,
    **options: Any,
) -> Work:  # fmt: skip
    made = Transaction(keys=keys or None, **options)
    made.insert("effect", {"id": made.id, "part": 0})
    made.insert("effect", {"id": made.id, "part": 1} | more)
    return Work(made, keys, poison, fails, "delay" in options)


def mixed(count: int) -> list[Work]:
    """Return `count` transactions of twenty kinds in turn, so that each branch of settling runs.

    Each twenty has poison with a key, at once or after a retry, and poison without one; a child
    before its parent; transactions that wait behind them by one key and by two; and a delayed one.
    """
    made: list[Work] = []
    for number in range(count):
        turn, kind = divmod(number, 20)
        p, c, d, o = (f"{what}-{turn}" for what in ("poison", "child", "delayed", "orphan"))
        special: dict[int, Callable[[], Work]] = {
            1: lambda o=o: orphan(o),
            2: lambda o=o: plain(o),
            3: lambda p=p: poison(p),
            5: lambda p=p: plain(p),
            6: lambda t=turn, c=c: child(t, c),
            7: lambda c=c: plain(c),
            8: lambda o=o: plain(o),
            9: lambda p=p: plain(p),
            11: lambda c=c: plain(c),
            12: lambda t=turn: parent(t),
            14: lambda d=d: plain(d, delay=0.01),
            15: lambda d=d: plain(d),
            16: nowhere,
            17: lambda p=p, c=c: plain(p, c),
            18: lambda c=c: plain(c),
        }
        made.append(special.get(kind, lambda n=number: plain(*[f"k{n % 3}"] * (n % 2)))())
    return made


def held(work: Iterable[Work]) -> set[str]:
    """Return the ids that wait behind poison, directly or not."""
    keys: set[str] = set()
    found = set()
    for one in work:
        if not keys.isdisjoint(one.keys):
            found.add(one.transaction.id)
        if one.poison or not keys.isdisjoint(one.keys):
            keys.update(one.keys)
    return found


class Site:
    """One buffer with its own namespace, and its database."""

    def __init__(self, redis_url: str, tables: Database, /, **settings: Any) -> None:
        self.database = tables
        # Short waits for short tests; everything else has its default.
        self.mapping: dict[str, Any] = {
            "namespace": f"test-{new_id()}",
            "redis": {"url": redis_url},
            "database": {"dsn": tables.dsn, "takeover": 1.5},
            "interval": 0.2,
            "retry": {"delay": 0.05, "max_delay": 1.0},
        } | settings  # fmt: skip
        self.settings = loader.load(self.mapping)
        self.producer = Writer(self.settings)
        self.redis = redis_driver.Redis.from_url(redis_url)
        self.lane = Lane(self.settings.namespace, "default:0")
        self.history: list[Submitted] = []

    def close(self) -> None:
        self.producer.pool.close()
        self.redis.close()

    # What a producer does.

    def submit(self, work: Iterable[Work]) -> list[Receipt]:
        """Submit in order and keep the receipts."""
        work = list(work)
        encoded = [self.encoded(one) for one in work]
        receipts = []
        for start in range(0, len(encoded), 500):
            receipts += self.producer.submit_many(encoded[start : start + 500])
        self.history += map(acknowledged, work, receipts)
        return receipts

    def encoded(self, work: Work) -> Encoded:
        """Return the transaction as it is added to the buffer."""
        return work.transaction.encode(time.time(), self.settings.buffer.transaction_bytes)

    # Processors.

    def start(self, spawn: Spawn, **environ: str) -> Process:
        """Start a processor as a separate program."""
        return spawn(PROCESSOR, json.dumps(self.mapping), **environ)

    # Where the transactions are.

    def decided(self) -> set[str]:
        """Return the ids that have an outcome in PostgreSQL."""
        return {row[0] for row in self.database.execute("SELECT id::text FROM processor.ledger")}

    def parked(self) -> set[str]:
        """Return the ids that are parked in Redis."""
        return {i.decode() for i in self.redis.hkeys(self.lane.parked)}

    def left(self) -> int:
        """Return the number of records of this lane in Redis."""
        keys = self.redis.pipeline(transaction=False)
        keys.xlen(self.lane.stream).zcard(self.lane.scheduled)
        keys.hlen(self.lane.parked).zcard(self.lane.blocked).zcard(self.lane.retry)
        return sum(keys.execute())

    def wait_decided(self, ids: Iterable[str], timeout: float = 20.0) -> None:
        """Wait until all these ids have an outcome."""
        wanted = set(ids)
        wait_until(
            lambda: wanted <= self.decided(), timeout,
            lambda: f"{len(wanted - self.decided())} of {len(wanted)} have no outcome: "
            f"{sorted(wanted - self.decided())[:5]}", poll=0.02,
        )  # fmt: skip

    def wait_empty(self, timeout: float = 20.0) -> None:
        """Wait until the lane is empty."""
        wait_until(lambda: self.left() == 0, timeout, lambda: f"{self.left()} left", poll=0.02)

    def findings(self, waiting: Iterable[str] = ()) -> Findings:
        """Compare the receipts with the tables."""
        return findings(self.database, self.history, waiting)

    def ask(self, request: str, letters: Iterable[str]) -> None:
        """Request a decision on dead letters, as an operator does."""
        session = Session(self.settings.database, Progress(), application="operator")
        session.connect()
        try:
            for letter in letters:
                for found in dead_letters.find(session, letter):
                    assert dead_letters.record_request(session, found, request)
        finally:
            session.close()


def acknowledged(work: Work, receipt: Receipt) -> Submitted:
    """Return what a producer knows after an acknowledged submit.

    The name of a lane is unique within its buffer only.
    """
    lane = f"{receipt.lane} of {receipt.buffer}"
    return Submitted(receipt.id, work.keys, lane, receipt.entry_id, fails=work.fails)


def findings(database: Database, history: list[Submitted], waiting: Iterable[str] = ()) -> Findings:
    """Compare a history with the tables of a database."""
    rows = database.execute
    return check(
        history,
        [Effect(*r) for r in rows(
            "SELECT id::text, part, position, xid::text::bigint FROM effect")],
        [Known(*r) for r in rows(
            "SELECT id::text, outcome, xid::text::bigint, entry FROM processor.ledger")],
        [Dead(*r) for r in rows("SELECT id::text, outcome, holds FROM processor.dead_letter")],
        set(waiting),
    )  # fmt: skip


def prepare(database: Database) -> Database:
    """Create the schema and the tables of the workload; return the database."""
    database.execute(DDL + TABLES)
    return database


def empty(database: Database) -> None:
    """Delete all rows."""
    database.execute(
        "TRUNCATE effect, child, parent, processor.ledger, processor.dead_letter, processor.lane"
    )


def sites(redis_url: str, tables: Database, /, **settings: Any) -> Iterator[Site]:
    """Yield a site and close it; for fixtures."""
    site = Site(redis_url, tables, **settings)
    yield site
    site.close()
