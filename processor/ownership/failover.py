"""What a processor does when the primary it writes to is another one than before.

An asynchronous failover loses the last commits. With `settle: replicated` their entries are still
in Redis and are applied again; with `settle: committed` they are gone, and it is told which they
were. An old primary that comes back is not written to.
"""

from __future__ import annotations

import logging

from processor.buffer import replica_status
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.connections.wal_position import is_superseded
from processor.errors import DatabaseUnavailable, RedisRefused
from processor.ledger import outcomes
from processor.ownership.owners import Owners
from processor.replicas import queries
from processor.replicas.watch import ReplicaWatch
from processor.telemetry import metrics

log = logging.getLogger("processor.ownership")

_AT_ONCE = 500
_SHOWN = 5


class Failover:
    """Meets the primary anew after each connect, for one processor."""

    def __init__(self, namespace: str, following: ReplicaWatch) -> None:
        self._namespace = namespace
        self._following = following
        #: Whether what was told of replicas before is known, and whether some were lost then.
        self._recalled = self._passed_over = False

    def expect(self, database: PostgresSession, redis: RedisConnection) -> None:
        """Before a connect: let no primary be taken that was left behind."""
        told, own = replica_status.primary(redis, self._namespace), self._following.primary
        if told is not None and own is not None and told[0] == own[0]:
            # A full Redis takes no news, and one that is restored tells old ones.
            told = max(told, own)
        database.newest = told

    def meet(self, database: PostgresSession, redis: RedisConnection, owners: Owners) -> None:
        """After it: see which primary this is."""
        told, here = database.newest, (database.system, database.timeline)
        before = self._following.primary
        if not self._recalled:
            told_of = replica_status.replicas(redis, self._namespace)
            self._passed_over = self._following.restore_lost(told_of)
            self._recalled = True
        if before is None:
            lossy = self._passed_over or not self._following.settles_replicated
            if told not in (None, here) and lossy:
                owners.report(f"the primary changed from {_named(told)} to {_named(here)}"
                              " unwatched: what was committed last there may be lost, unnamed")
        elif before != here or self._lacks_some(database):
            for lane in owners.lanes.values():
                lane.forget()
            self._judge(database, redis, owners, before, here)
        self._following.set_primary(*here)

    def _lacks_some(self, database: PostgresSession) -> bool:
        """Whether the same primary may have crashed without writing our last commits.

        It need not have waited for its disk (synchronous_commit), and counts on from before them.
        """
        marks = self._following.marks
        newest, tokens = marks.newest(), marks.lanes_by_token()
        if newest is None or not tokens:
            return False
        _, _, shown = database.run(queries.replayed(tokens))[0]
        return marks.replayed_position(queries.lane_rows(shown)) != newest

    def look(self, database: PostgresSession, redis: RedisConnection) -> None:
        """Now and then: tell which primary this is, and see that it was not left behind."""
        told = replica_status.primary(redis, self._namespace)
        here = database.system, database.timeline
        if told == here:
            return
        if is_superseded(here, told):
            # Cut off from the others it would go on committing what nobody will have.
            database.close()
            raise DatabaseUnavailable(
                f"the primary was left behind: {_named(told)} is written to",
                hint="stop it, and point database.dsn at the new one",
            )
        redis.calls([replica_status.publish_primary(self._namespace, *here)])

    def _judge(
        self, database: PostgresSession, redis: RedisConnection, owners: Owners,
        before: tuple[str, int], here: tuple[str, int],
    ) -> None:  # fmt: skip
        ids, unnamed = self._following.unconfirmed()
        missing = []
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            known = outcomes.find(database, some)
            missing += [i for i in some if i not in known]
        what = f"the failover from {_named(before)} to {_named(here)}"
        if before == here:
            what = f"a crash of the primary ({_named(here)})"
        metrics.count("lost", len(missing))
        if missing:
            # Those before the oldest that is there are there as well.
            before_them = unnamed if ids[0] in missing else 0
            self._report(redis, owners, what, _named(before), _named(here), missing, before_them)
        elif before != here:
            kept = "what it lost is applied again" if self._following.settles_replicated else (
                "no commit of this processor was left behind")  # fmt: skip
            log.warning("%s: %s", what, kept)

    def _report(
        self, redis: RedisConnection, owners: Owners, what: str, before: str, here: str,
        missing: list[str], unnamed: int,
    ) -> None:  # fmt: skip
        replies = redis.calls(replica_status.record_losses(self._namespace, before, here, missing))
        where = "all: `processor status --json`"
        if any(isinstance(reply, RedisRefused) for reply in replies):
            where = "all are in the log"
            for start in range(0, len(missing), _AT_ONCE):
                log.error("left behind: %s", ",".join(missing[start : start + _AT_ONCE]))
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        more = f", and perhaps {unnamed} before them, unnamed" if unnamed else ""
        owners.report(f"{what} left {len(missing)} commits behind: {shown} ({where}){more}")


def _named(primary: tuple[str, int] | None) -> str:
    return f"timeline {primary[1]} of {primary[0]}" if primary else "nowhere"
