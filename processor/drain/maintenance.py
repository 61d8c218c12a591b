"""Periodic work of a pass: requests of operators, pruning, lost streams, open dead letters.

All of it may be late, and none of it may be lost.
"""

from __future__ import annotations

import time

from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.backlog import Backlog
from processor.drain.operator_requests import OperatorRequests
from processor.drain.pruning import Pruning
from processor.ledger import dead_letters
from processor.ownership.owners import Owners
from processor.ownership.stream_watch import StreamWatch
from processor.telemetry import metrics

_PRUNE_EVERY = 60.0
#: Dead letters are counted this often, and sooner after this processor added or decided one.
_COUNT_EVERY = 10.0
_COUNT_SOON = 1.0
#: Operators' requests are looked for this often, idle and busy.
_REQUESTS_EVERY = 1.0
_REQUESTS_EVERY_BUSY = 5.0


class Maintenance:
    """Does the periodic work of one processor.

    `dead_letters` is how many are open, counted at `counted_at` (Unix seconds), None if never.
    """

    def __init__(
        self, settings: Settings, database: PostgresSession, redis: RedisConnection, owners: Owners,
        writer: DeadLetterWriter, backlog: Backlog,
    ) -> None:  # fmt: skip
        self._takeover = settings.database.takeover
        self._database = database
        self._owners = owners
        self._backlog = backlog
        self._requests = OperatorRequests(settings, database, redis, owners, writer)
        self._pruning = Pruning(settings, database, redis)
        self._streams = StreamWatch(database, redis)
        self._asked = self._pruned = self._counted = float("-inf")
        self._counted_changes = 0.0
        self.dead_letters = 0
        self.counted_at: float | None = None

    def run(self, now: float, *, busy: bool) -> None:
        """Do what is due at `now` (monotonic); `busy` if batches keep the session alive anyway."""
        if not self._owners.owned:
            return
        # Over a long link each of these calls takes the time of a batch.
        often = _REQUESTS_EVERY_BUSY if busy else min(_REQUESTS_EVERY, self._takeover / 3) * 0.9
        if now - self._asked >= often:
            self._asked = now
            if self._requests.carry_out():
                self._backlog.measure_soon()
        self._streams.look(self._owners.owned, now)
        self._count_dead_letters(now)
        if now - self._pruned >= _PRUNE_EVERY:
            self._pruned = now
            for lane in self._owners.owned:
                if self._pruning.prune(lane):
                    self._pruned = float("-inf")  # Continue in the next pass.

    def _count_dead_letters(self, now: float) -> None:
        changes = self._requests.done + metrics.total("dead")
        often = _COUNT_EVERY if changes == self._counted_changes else _COUNT_SOON
        if now - self._counted >= often:
            self._counted, self._counted_changes = now, changes
            self.dead_letters = dead_letters.count_open(self._database, self._owners.buffer)
            self.counted_at = time.time()
