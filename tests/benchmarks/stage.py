"""The servers of a benchmark, with durable settings, removed afterwards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, Self

import psycopg2
import redis

import processor
from processor.embedded import PostgresServer, RedisServer
from tests.benchmarks import orders

# Both are also the defaults of the servers, except for the AOF.
REDIS = {"appendonly": True, "appendfsync": "everysec"}
POSTGRES = {"fsync": True, "synchronous_commit": "on"}
STREAM = "processor:{default:0}:stream"
PARKED = "processor:{default:0}:parked"
FILL = 20_000


class Stage:
    """Redis and PostgreSQL on unix sockets, with the tables of the order workload."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.redis_server = self._stack.enter_context(RedisServer(REDIS))
        self.postgres_server = self._stack.enter_context(PostgresServer(POSTGRES))
        self.dsn = self.postgres_server.socket_dsn
        self.redis_url = self.redis_server.socket_url
        self.redis = redis.Redis.from_url(self.redis_url)
        self._stack.callback(self.redis.close)
        self.admin = self.connect()
        self.execute(orders.TABLES)
        self.configure()
        return self

    def __exit__(self, *_: object) -> None:
        processor.stop(5.0)
        self._stack.close()

    def connect(self, dsn: str = "") -> Any:
        """Open a connection in autocommit."""
        connection = psycopg2.connect(dsn or self.dsn)
        self._stack.callback(connection.close)
        connection.autocommit = True
        return connection

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run `sql` on the benchmark's own connection; return the rows."""
        with self.admin.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def settings(self, **sections: Any) -> dict[str, Any]:
        """Return settings for these servers; everything else has its default."""
        known: dict[str, Any] = {
            "redis": {"url": self.redis_url},
            "database": {"dsn": self.dsn, "init": True},
            "health": {"bind": ""},
            "buffer": {"limit": 100_000_000},
        }
        for name, more in sections.items():
            known[name] = known.get(name, {}) | more if isinstance(more, dict) else more
        return known

    def configure(self, **sections: Any) -> None:
        """Make these the settings of this process."""
        processor.configure(self.settings(**sections))

    def empty(self) -> None:
        """Empty the tables, and run a checkpoint so that none begins during a round."""
        self.execute(orders.EMPTY)
        self.redis.delete(*self.redis.keys("processor:state:*"), "nothing")
        if self.execute("SELECT to_regclass('processor.ledger')")[0][0]:
            self.execute("TRUNCATE processor.ledger, processor.dead_letter")
        for statement in ("VACUUM ANALYZE account", "CHECKPOINT"):
            self.execute(statement)

    def fill(self, count: int, *, poison: float = 0.0) -> None:
        """Submit `count` orders as a producer does, in chunks to keep memory flat."""
        for start in range(0, count, FILL):
            chunk = orders.orders(min(FILL, count - start), poison=poison, seed=start)
            processor.submit_many(map(orders.transaction, chunk))

    def see_all(self, count: int) -> None:
        """Check that every order is there once and the balances agree, or the figure is void."""
        found, amount = self.execute("SELECT count(*), coalesce(sum(amount), 0) FROM orders")[0]
        balance = self.execute("SELECT sum(balance) FROM account")[0][0]
        if (found, amount) != (count, balance):
            raise RuntimeError(
                f"{found} orders of {count}, amounts {amount}, balances {balance}"
            )

    @property
    def depth(self) -> int:
        """The number of entries in the stream."""
        return int(self.redis.xlen(STREAM))

    @property
    def parked(self) -> int:
        """The number of parked entries."""
        return int(self.redis.hlen(PARKED))

    def pause(self) -> None:
        """Pause the queue, as `processor queues pause default` does; see `resume`."""
        self.redis.hset("processor:paused", "default", 0)

    def resume(self) -> None:
        self.redis.hdel("processor:paused", "default")

    def lane_status(self) -> str:
        """Return the last published status of the lane; empty if there is none."""
        for key in self.redis.scan_iter("processor:state:*"):
            state = json.loads(self.redis.get(key) or b"{}")
            return str(state.get("lanes", {}).get("default:0", {}).get("status", ""))
        return ""

    @property
    def programs(self) -> dict[str, str]:
        """Return the versions of the programs, for the line."""
        return {"redis": _short(self.redis_server.version),
                "postgres": _short(self.postgres_server.version)}  # fmt: skip


def _short(version: str) -> str:
    return " ".join(version.split()[:4])
