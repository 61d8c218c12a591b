"""The first step of a pass: both servers answer, and it is settled which lanes are owned here.

After each connect to PostgreSQL, `failover` examines which primary this is. When the owned lanes
have changed, the replication watch is given a position that covers what was committed before.
"""

from __future__ import annotations

import logging

from processor.apply.committer import Committer
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseUnavailable, RedisUnavailable, WrongDatabase
from processor.ledger import dead_letters, schema
from processor.ownership import binding
from processor.ownership.failover import Failover
from processor.ownership.owners import Owners
from processor.replicas.watch import ReplicaWatch

log = logging.getLogger("processor.ownership")

#: New lanes, and lanes of other processors, are looked for this often, seconds.
_DISCOVER_EVERY = 1.0
#: A line of the log names at most this many other buffers.
_NAMED = 3


class Connector:
    """Connects one processor.

    `session_is_old` says whether the session with PostgreSQL was opened before this pass.
    """

    def __init__(
        self, settings: Settings, committer: Committer, redis: RedisConnection, owners: Owners,
        watch: ReplicaWatch,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._committer = committer
        self._redis = redis
        self._owners = owners
        self._watch = watch
        self._failover = Failover(settings.namespace, watch)
        self._discovered = float("-inf")
        self._examined = self._asked_role = -1
        #: The sessions on which the buffer's database was last checked.
        self._bound: tuple[int, int, str] | None = None
        self._named: binding.DatabaseName | None = None
        self._buffer = ""
        self.session_is_old = False

    def connect(self, now: float) -> bool:
        """Connect what is not connected and take lanes, at `now` (monotonic).

        Return whether the session with PostgreSQL is new. Raises Unavailable and DatabaseError.
        """
        self._refuse_replicas_of_redis()
        database: PostgresSession = self._committer.session
        self.session_is_old = database.alive
        if not database.alive:
            self._owners.lose()
            self._failover.refuse_older_primaries(database, self._redis)
            database.connect()
            self._check_schema(database)
            self._discovered = float("-inf")
        # Before anything is published in Redis of another database.
        self._check_binding(database)
        if self._examined != database.generation:
            # Not only after a connect: Redis may have been unreachable then.
            self._failover.examine(database, self._redis, self._owners)
            self._examined = database.generation
        often = min(_DISCOVER_EVERY, self._settings.database.takeover / 3)
        if not self._redis.alive or now - self._discovered >= often:
            self._failover.publish_primary(database, self._redis)
            self._discover(database)
            if self._owners.take(database, self._redis) and self._watch.tracks:
                self._watch_owned_lanes()
            self._discovered = now
        return not self.session_is_old

    def _refuse_replicas_of_redis(self) -> None:
        """Refuse a Redis that rejects writes, after each connect: reading there works.

        HELLO needs no right of the user; a proxy that does not know it hides replicas itself.
        """
        redis = self._redis
        if redis.alive and self._asked_role == redis.generation:
            return
        (reply,) = redis.calls([("HELLO",)])
        found = dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else {}
        if found.get(b"role", b"master") != b"master":
            redis.close()
            raise RedisUnavailable(
                "the Redis of redis.url is a replica and rejects writes",
                hint="point redis.url at the primary",
            )
        self._asked_role = redis.generation

    def _check_schema(self, database: PostgresSession) -> None:
        try:
            if self._settings.database.init:
                schema.create(database)
            schema.check(database)
            schema.check_rights(database)
        except DatabaseUnavailable:
            # On a session that stays open the next pass would skip this check, and would fail later
            # with a vaguer error.
            database.close()
            raise

    def _discover(self, database: PostgresSession) -> None:
        self._owners.discover(self._redis)
        before, self._buffer = self._buffer, self._owners.buffer
        if before == self._owners.buffer:
            return
        if before:
            # While we hold the old buffer's locks it looks alive, and its dead letters cannot be
            # adopted.
            database.locks.clear()
            database.run("SELECT pg_catalog.pg_advisory_unlock_all()")
        self._report_other_buffers(database)

    def _check_binding(self, database: PostgresSession) -> None:
        on = database.generation, self._redis.generation, self._owners.buffer
        if self._bound != on:
            if self._named is None or self._bound is None or self._bound[0] != on[0]:
                self._named = binding.name_of(database)
            try:
                bound = binding.check(
                    database, self._named, self._redis, self._settings.namespace
                )
            except WrongDatabase:
                database.close()
                raise
            self._bound = on if bound else None

    def _report_other_buffers(self, database: PostgresSession) -> None:
        """Dead letters of a buffer that no longer exists are counted nowhere else."""
        others = dead_letters.open_elsewhere(database, self._owners.buffer)
        if others:
            named = ", ".join(f"{count} of {buffer}" for buffer, count in others[:_NAMED])
            log.info("open dead letters of other buffers, which this processor does not decide:"
                     " %s%s: see `processor dead list`",
                     named, ", ..." if len(others) > _NAMED else "")

    def forget(self) -> None:
        """Look for lanes again in the next pass."""
        self._discovered = float("-inf")

    def _watch_owned_lanes(self) -> None:
        owned = [lane.owner for lane in self._owners.owned if lane.owner is not None]
        self._watch.start_session({owner.token: owner.lane for owner in owned})
        if owned:
            self._committer.begin()
            self._committer.upper_bound(owned[0])
