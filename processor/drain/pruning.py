"""Pruning: ledger rows that are old, and whose entries are known to be settled, are removed.

The order matters (rule 23): a mark in Redis first, which keeps the highest accept time ever pruned,
then the rows. A Redis that is restored from before the mark is recognized by that.
"""

from __future__ import annotations

import logging
import sys

from processor.buffer import delayed, parked, stream
from processor.buffer.entry_ids import accept_time
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.errors import RedisRefused
from processor.ledger import outcomes
from processor.ledger.lane_rows import Ownership
from processor.ownership.owned_lane import OwnedLane

log = logging.getLogger("processor.drain")

#: At most this many rows of a lane are pruned in one go.
_ROWS = 5_000
_AT_ONCE = 500


class Pruning:
    """Prunes the ledger for the lanes of one processor."""

    def __init__(
        self, settings: Settings, database: PostgresSession, redis: RedisConnection
    ) -> None:
        self._retention = settings.ledger.retention
        self._database = database
        self._redis = redis
        self._overlay = Overlay(settings)

    def prune(self, lane: OwnedLane) -> bool:
        """Prune what may be pruned of a lane; return whether there may be more."""
        if lane.owner is None:
            return False
        keys, limit = lane.lane, lane.doubtful_until
        head, parked_count, mark = checked(self._redis.read([
            stream.read(keys, "-", 1), ("HLEN", keys.parked), ("GET", keys.pruned)
        ]))  # fmt: skip
        oldest = int(head[0][0].partition(b"-")[0]) if head else sys.maxsize
        if limit is not None and (
            parked_count or oldest <= limit or delayed.suspects(self._redis, keys, limit)
        ):
            return False  # Not all that a restored Redis brought back has been judged.
        rows = self._prunable(lane.owner, lane, oldest)
        newest = max([accept_time(mark), limit or 0, *(at for _, at in rows)])
        # Redis first: one that is restored to before this moment must not have the mark.
        if isinstance(self._redis.calls([("SET", keys.pruned, newest)])[0], RedisRefused):
            return False
        lane.all_judged()
        for start in range(0, len(rows), _AT_ONCE):
            gone = [i for i, _ in rows[start : start + _AT_ONCE]]
            self._database.run(outcomes.prune(lane.owner, gone))
        if rows:
            log.info("lane %s: pruned %d rows of the ledger", lane.name, len(rows))
        return len(rows) == _ROWS

    def _prunable(self, owner: Ownership, lane: OwnedLane, oldest: int) -> list[tuple[str, int]]:
        """Old rows, with their accept times (ms), whose entries are no longer in Redis."""
        rows = outcomes.prunable(self._database, owner, self._retention, oldest, _ROWS)
        needed: set[str] = set()
        for start in range(0, len(rows), _AT_ONCE):
            ids = [i for i, _ in rows[start : start + _AT_ONCE]]
            needed |= parked.having_record(self._redis, lane.lane, ids)
            # Without its row, an entry that readers still merge would be merged twice.
            needed |= self._overlay.kept(self._redis, ids)
        return [row for row in rows if row[0] not in needed]
