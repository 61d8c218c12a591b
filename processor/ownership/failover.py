"""What a processor does when it writes to another primary than before.

An asynchronous failover loses the last commits. With `settle: replicated` their entries are still
in Redis and are applied again; with `settle: committed` they are lost, and their ids are reported.
A returning old primary is not written to.
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

#: System identifier and timeline of a primary.
Primary = tuple[str, int]


class Failover:
    """Examines the primary after each connect, for one processor."""

    def __init__(self, namespace: str, watch: ReplicaWatch) -> None:
        self._namespace = namespace
        self._watch = watch
        #: Whether the published states of replicas were read, and whether some were lost then.
        self._recalled = self._some_were_lost = False

    def refuse_older_primaries(self, database: PostgresSession, redis: RedisConnection) -> None:
        """Before a connect: have the session refuse a primary that was left behind."""
        published, own = replica_status.primary(redis, self._namespace), self._watch.primary
        if published is not None and own is not None and published[0] == own[0]:
            # What Redis has may be old: a full Redis was not updated, a restored one went back.
            published = max(published, own)
        database.newest = published

    def examine(self, database: PostgresSession, redis: RedisConnection, owners: Owners) -> None:
        """After a connect: find out which primary this is, and what it lacks."""
        published, here = database.newest, (database.system, database.timeline)
        before = self._watch.primary
        if not self._recalled:
            states = replica_status.replicas(redis, self._namespace)
            self._some_were_lost = self._watch.restore_lost(states)
            self._recalled = True
        if before is None:
            lossy = self._some_were_lost or not self._watch.settles_replicated
            if published not in (None, here) and lossy:
                owners.report_loss(
                    f"the primary changed from {_named(published)} to {_named(here)} while no"
                    " processor was running: the last commits before may be lost, with unknown ids"
                )
        elif before != here or self._lost_commits(database):
            for lane in owners.lanes.values():
                lane.forget()
            self._judge(database, redis, owners, before, here)
        self._watch.set_primary(*here)

    def _lost_commits(self, database: PostgresSession) -> bool:
        """Whether the same primary crashed before it had written our last commits to its disk.

        With synchronous_commit off it did not wait for the disk, and continues from before them.
        """
        marks = self._watch.marks
        newest, tokens = marks.newest(), marks.lanes_by_token()
        if newest is None or not tokens:
            return False
        _, _, shown = database.run(queries.replayed(tokens))[0]
        return marks.replayed_position(queries.lane_rows(shown)) != newest

    def publish_primary(self, database: PostgresSession, redis: RedisConnection) -> None:
        """Publish which primary this is. Raises DatabaseUnavailable if it was left behind."""
        published = replica_status.primary(redis, self._namespace)
        here = database.system, database.timeline
        if published == here:
            return
        if is_superseded(here, published):
            # Cut off from the other servers, it would keep committing what they never receive.
            database.close()
            raise DatabaseUnavailable(
                f"the primary was left behind: {_named(published)} is written to",
                hint="stop it, and point database.dsn at the new primary",
            )
        redis.calls([replica_status.publish_primary(self._namespace, *here)])

    def _judge(
        self, database: PostgresSession, redis: RedisConnection, owners: Owners,
        before: Primary, here: Primary,
    ) -> None:  # fmt: skip
        ids, unnamed = self._watch.unconfirmed()
        missing = []
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            found = outcomes.find(database, some)
            missing += [i for i in some if i not in found]
        event = f"the failover from {_named(before)} to {_named(here)}"
        if before == here:
            event = f"a crash of the primary ({_named(here)})"
        metrics.count("lost", len(missing))
        if missing:
            # If the oldest remembered commit survived, all older ones did.
            older = unnamed if ids[0] in missing else 0
            self._report(redis, owners, event, _named(before), _named(here), missing, older)
        elif before != here:
            kept = "no commit of this processor was lost"
            if self._watch.settles_replicated:
                kept = "entries whose commits it lost are applied again"
            log.warning("%s: %s", event, kept)

    def _report(
        self, redis: RedisConnection, owners: Owners, event: str, before: str, here: str,
        missing: list[str], older: int,
    ) -> None:  # fmt: skip
        replies = redis.calls(replica_status.record_losses(self._namespace, before, here, missing))
        where = "all ids: `processor status --json`"
        if any(isinstance(reply, RedisRefused) for reply in replies):
            where = "all ids are in the log"
            for start in range(0, len(missing), _AT_ONCE):
                log.error("left behind: %s", ",".join(missing[start : start + _AT_ONCE]))
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        more = f", and perhaps {older} earlier ones whose ids are unknown" if older else ""
        owners.report_loss(f"{event} left {len(missing)} commits behind: {shown} ({where}){more}")


def _named(primary: Primary | None) -> str:
    return f"timeline {primary[1]} of {primary[0]}" if primary else "an unknown primary"
