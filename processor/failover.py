"""What a processor does when the primary it writes to is another one than before.

An asynchronous failover loses the last commits. With `settle: replicated` their entries are still
in Redis and are applied again; with `settle: committed` they are gone, and it is told which they
were. An old primary that comes back is not written to.
"""

from __future__ import annotations

import logging

from processor import ledger, metrics, replication
from processor.database import Database
from processor.following import Following
from processor.ownership import Owners
from processor.redis_connection import RedisConnection

log = logging.getLogger("processor")

_AT_ONCE = 500
_SHOWN = 5


class Failover:
    """Meets the primary anew after each connect, for one processor."""

    def __init__(self, namespace: str, following: Following) -> None:
        self._namespace = namespace
        self._following = following

    def expect(self, database: Database, redis: RedisConnection) -> None:
        """Before a connect: let no primary be taken that was left behind."""
        database.newest = replication.primary(redis, self._namespace)

    def meet(self, database: Database, redis: RedisConnection, owners: Owners) -> None:
        """After it: see which primary this is."""
        told, here = database.newest, (database.system, database.timeline)
        before = self._following.primary
        if before is None:
            self._following.recall(replication.known(redis, self._namespace))
        if before not in (None, here):
            for lane in owners.lanes.values():
                lane.forget()
            self._judge(database, redis, owners, _named(before), _named(here))
        elif before is None and told not in (None, here) and not self._following.replicates:
            owners.report(f"the primary changed from {_named(told)} to {_named(here)} unwatched:"
                          " what was committed last there may be lost, unnamed")  # fmt: skip
        redis.calls([replication.now_primary(self._namespace, *here)])
        self._following.met(*here)

    def _judge(
        self, database: Database, redis: RedisConnection, owners: Owners, before: str, here: str
    ) -> None:
        ids = self._following.unconfirmed()
        missing = []
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            known = ledger.find(database, some)
            missing += [i for i in some if i not in known]
        metrics.count("lost", len(missing))
        if self._following.replicates:
            log.warning("failover from %s to %s: what it lost is applied again", before, here)
        elif not missing:
            log.warning("failover from %s to %s: no commit was left behind", before, here)
        else:
            redis.calls(replication.lost(self._namespace, before, here, missing))
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            owners.report(f"the failover from {before} to {here} left {len(missing)} commits"
                          f" behind: {shown} (all: `processor status --json`)")  # fmt: skip


def _named(primary: tuple[str, int] | None) -> str:
    return f"timeline {primary[1]} of {primary[0]}" if primary else "nowhere"
