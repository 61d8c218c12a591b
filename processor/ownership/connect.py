"""The first step of a pass: both servers answer, and each lane is owned by somebody.

After each connect the primary is met anew (see `failover`), and what was committed before in the
lanes that are ours gets a mark that replicas can show.
"""

from __future__ import annotations

import logging

from processor.apply.committer import Committer
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseUnavailable
from processor.ledger import dead_letters, schema
from processor.ownership.failover import Failover
from processor.ownership.owners import Owners
from processor.replicas.watch import ReplicaWatch

log = logging.getLogger("processor.ownership")

#: How often lanes that are new, or another's, are looked for, seconds.
_MEET = 1.0
#: So many other buffers are named in a line of the log.
_NAMED = 3


class Connector:
    """Connects one processor. `session_is_old`: it was there before the pass began."""

    def __init__(
        self, settings: Settings, session: Committer, redis: RedisConnection, owners: Owners,
        following: ReplicaWatch,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._session = session
        self._redis = redis
        self._owners = owners
        self._following = following
        self._failover = Failover(settings.namespace, following)
        self._met = float("-inf")
        self._primary_met = -1
        self._known_as = ""
        self.session_is_old = False

    def connect(self, now: float) -> bool:
        """See that all is there, at `now` (monotonic). Whether the session with PostgreSQL is new.

        Raises Unavailable and DatabaseError.
        """
        database: PostgresSession = self._session.database
        self.session_is_old = database.alive
        if not database.alive:
            self._owners.lose()
            self._failover.expect(database, self._redis)
            database.connect()
            self._see_schema(database)
            self._met = float("-inf")
        if self._primary_met != database.generation:
            # Redis may have been away when it was to be met.
            self._failover.meet(database, self._redis, self._owners)
            self._primary_met = database.generation
        often = min(_MEET, self._settings.database.takeover / 3)
        if not self._redis.alive or now - self._met >= often:
            self._failover.look(database, self._redis)
            self._meet(database)
            if self._owners.take(database, self._redis) and self._following.tracks:
                self._follow()
            self._met = now
        return not self.session_is_old

    def _see_schema(self, database: PostgresSession) -> None:
        try:
            if self._settings.database.init:
                schema.create(database)
            schema.check(database)
            schema.check_rights(database)
        except DatabaseUnavailable:
            # On a session that stays the next pass would not look again, and fail with less to say.
            database.close()
            raise

    def _meet(self, database: PostgresSession) -> None:
        self._owners.meet(self._redis)
        before, self._known_as = self._known_as, self._owners.buffer
        if before == self._owners.buffer:
            return
        if before:
            # Whose lanes are locked lives: nobody could take over what it left.
            database.run("SELECT pg_advisory_unlock_all()")
        self._tell_of_others(database)

    def _tell_of_others(self, database: PostgresSession) -> None:
        """What a buffer that is gone left behind is in nobody's count."""
        others = dead_letters.open_elsewhere(database, self._owners.buffer)
        if others:
            named = ", ".join(f"{count} of {buffer}" for buffer, count in others[:_NAMED])
            log.info("open dead letters of other buffers, which this processor does not decide:"
                     " %s%s: see `processor dead list`",
                     named, ", ..." if len(others) > _NAMED else "")

    def forget(self) -> None:
        """Meet the lanes anew in the next pass."""
        self._met = float("-inf")

    def _follow(self) -> None:
        owned = [lane.owner for lane in self._owners.owned if lane.owner is not None]
        self._following.start_session({owner.token: owner.lane for owner in owned})
        if owned:
            self._session.begin()
            self._session.behind(owned[0])
