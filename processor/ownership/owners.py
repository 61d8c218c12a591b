"""Who drains a lane: this processor, if it can take the lane, or another one (rules 1 to 4, 7).

Hands the drain its `OwnedLane`s. A lane is taken in three steps: its advisory lock, a new epoch,
and a check of Redis: did it go back in time, and do the lines of blocked keys agree with the dead
letters? Then the lane is read from the head of its stream.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from processor import crashpoint
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.buffer import registry
from processor.buffer.entry_ids import accept_time
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError
from processor.ledger import lane_rows
from processor.ownership import key_lines, stream_watch
from processor.ownership.owned_lane import LaneTurn, OwnedLane
from processor.telemetry import metrics

log = logging.getLogger("processor.ownership")


class Owners:
    """Takes and gives up lanes for one processor.

    `lanes` has all lanes that this processor drains or would like to, by name. `buffer` is the
    identity of the buffer, empty at first.
    """

    def __init__(self, settings: Settings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self.lanes: dict[str, OwnedLane] = {}
        self.buffer = ""
        self._loss = ""
        self._tokens: set[str] = set()

    @property
    def owned(self) -> list[OwnedLane]:
        """The lanes that this processor owns."""
        return [lane for lane in self.lanes.values() if lane.owner is not None]

    @property
    def loss(self) -> str:
        """What lanes have lost, until it is acknowledged, and the last report of another loss."""
        lanes = [str(x.streamed.loss) for x in self.lanes.values() if x.streamed.loss]
        return "; ".join([*lanes, self._loss] if self._loss else lanes)

    def discover(self, redis: RedisConnection) -> None:
        """Read the buffer's identity and lanes; a changed identity is a loss event (rule 1)."""
        found = registry.identity(redis, self._settings.namespace)
        if self.buffer and found != self.buffer:
            self.report_loss(f"the identity of the buffer changed from {self.buffer} to {found}:"
                             " entries accepted before and not committed are lost")  # fmt: skip
            self.lanes.clear()
        self.buffer = found
        drained = self._settings.drain
        registered = registry.registered(redis, self._settings.namespace, self._settings.queues)
        if len(registered) == registry.MOST_LANES > len(self.lanes):
            log.warning("%d lanes or more are registered: lanes beyond these are not drained."
                        " Remove from the set %s:lanes what no application wrote to",
                        registry.MOST_LANES, self._settings.namespace)  # fmt: skip
        for name in {*self._configured(), *registered}:
            lane = Lane(self._settings.namespace, name)
            if name not in self.lanes and (not drained or lane.queue in drained):
                queue = self._settings.queues.get(lane.queue)
                self.lanes[name] = OwnedLane(lane, LaneTurn(queue.weight if queue else 1))

    def _configured(self) -> Iterable[str]:
        for name, queue in self._settings.queues.items():
            yield from (f"{name}:{n}" for n in range(queue.partitions))

    def take(self, database: PostgresSession, redis: RedisConnection) -> bool:
        """Try to take every lane that is not owned, and check owned ones after a reconnect.

        Return whether the set of owned lanes, each in its epoch, has changed.
        """
        for lane in self.lanes.values():
            if lane.owner is None:
                self._take(database, lane)
            if lane.owner is not None and lane.checked_on != redis.generation:
                if lane.withheld.generation != redis.generation or (
                    lane.lost_epoch and lane.lost_epoch + 1 != lane.owner.epoch
                ):
                    # Read on another connection, or another processor owned it in between.
                    lane.forget()
                lane.start_epoch()
                self._detect_rollback(database, redis, lane)
                key_lines.rebuild(database, redis, lane)
                lane.checked_on = redis.generation
                crashpoint.reach("lane-owned")
            elif lane.owner is not None and lane.parking.lacks_dead_letters:
                key_lines.put_dead_letters(database, redis, lane)
        before, self._tokens = self._tokens, {x.owner.token for x in self.owned if x.owner}
        return before != self._tokens

    def _take(self, database: PostgresSession, lane: OwnedLane) -> None:
        try:
            lane.owner = lane_rows.acquire(
                database, self._settings.namespace, self.buffer, lane.name,
                site=self._settings.site, instance=self._instance,
            )  # fmt: skip
        except DatabaseError as error:
            if judge(ErrorReply(error.sqlstate)) is not Verdict.CONTENTION:
                raise
        if lane.owner is None:
            lane.streamed.loss = None  # Its owner reports it.
            log.debug("lane %s: another processor owns it", lane.name)
            return
        lane.check_again()
        metrics.count("takeovers")
        log.info("lane %s: this processor owns it now, epoch %d", lane.name, lane.owner.epoch)

    def _detect_rollback(
        self, database: PostgresSession, redis: RedisConnection, lane: OwnedLane
    ) -> None:
        assert lane.owner is not None
        rows = database.run(
            "SELECT last_entry, seen,"
            " (extract(epoch FROM pruned_to) OPERATOR(pg_catalog.*) 1000)::bigint"
            f" FROM processor.lane WHERE buffer = '{self.buffer}' AND lane = {quoted(lane.name)}"
        )
        last, seen, pruned_to = rows[0]
        # Redis may have been restored, or failed over to a replica that lacked the end (rule 23).
        stream_watch.begin(database, redis, lane, seen, last)
        # A new entry of a producer hides that the stream is old, but Redis' own mark shows it.
        mark = accept_time(redis.call("GET", lane.lane.pruned))
        lane.doubtful_until = pruned_to if pruned_to is not None and mark < pruned_to else None
        if lane.doubtful_until is not None:
            self.report_loss(f"lane {lane.name}: Redis went back to before the ledger was pruned:"
                             " entries from that time become dead letters, since they may have been"
                             " applied: see `processor dead list`")  # fmt: skip

    def report_loss(self, text: str) -> None:
        """Log an error, and show in the state, what was or may have been lost."""
        self._loss = text
        log.error("loss window: %s", text)

    @property
    def standing_by(self) -> bool:
        """Whether there are lanes, and other processors own all of them."""
        return bool(self.lanes) and not self.owned

    def lose(self) -> None:
        """The session ended, and with it the ownership of every lane."""
        for lane in self.lanes.values():
            lane.session_lost()

    def give_up(self, database: PostgresSession) -> None:
        """Let other processors take the lanes at once, at a clean stop."""
        given = self.owned
        self.lose()
        for lane in given:
            lane_rows.give_up(database, self._settings.namespace, self.buffer, lane.name)
