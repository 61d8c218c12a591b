"""Who drains a lane: this processor, if it can take the lane, or another one (rules 1 to 4, 7).

Hands the drain a list of `OwnedLane`. Taking a lane means: advisory lock, epoch, then Redis looked
at anew - from the head of the stream, with the lines of blocked keys rebuilt from the dead letters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor import crashpoint
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.buffer import parked, registry
from processor.buffer.entry_ids import last_generated, order
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError, RedisRefused
from processor.ledger import dead_letters, lane_rows, outcomes
from processor.ledger.lane_rows import Ownership
from processor.ownership.replication_backlog import ReplicationBacklog
from processor.telemetry import metrics
from processor.transaction.entry import Entry

log = logging.getLogger("processor.ownership")

_PAGE = 500


@dataclass(slots=True)
class Page:
    """Entries that were read together, on one connection to Redis; `ahead` is their text."""

    generation: int
    first: str
    last: str
    entries: list[Entry] = field(default_factory=list)
    unreadable: list[tuple[Entry, str]] = field(default_factory=list)
    ahead: Any = None


@dataclass(slots=True)
class OwnedLane:
    """A lane with what its owner remembers of it; all of it may be forgotten at any time."""

    lane: Lane
    weight: int = 1
    owner: Ownership | None = None
    cursor: str = "-"
    bell: str = "0-0"
    rewind: bool = False
    #: Whether the stream was read to its end since what was read was forgotten.
    reread: bool = False
    seen: int = 0
    page: Page | None = None
    body_bytes: float = 65536.0
    has_lines: bool = True
    has_bodies: bool = True
    next_retry: float | None = 0.0
    next_due: float | None = 0.0
    later: set[str] = field(default_factory=set)
    stuck: dict[str, Entry] = field(default_factory=dict)
    condemned: str = ""
    full_until: float = 0.0
    paused_until: float = 0.0
    pauses: int = 0
    reason: str = ""
    #: After Redis went back: the accept time (ms) up to which the ledger may have forgotten.
    suspect_to: int | None = None
    credit: float = 0.0
    age: float = 0.0
    limit: int = 0
    trouble: tuple[str, int] = ("", 0)
    streak: tuple[str, frozenset[str]] = ("", frozenset())
    #: What stays in the stream until replicas have it, and the epoch in which that was owned.
    withheld: ReplicationBacklog = field(default_factory=ReplicationBacklog)
    epoch: int = 0

    def is_full(self) -> bool:
        """Whether Redis refused a moment ago to take anything new (rule 20)."""
        return self.full_until > time.monotonic()

    @property
    def stuck_keys(self) -> set[str]:
        """Keys of entries that stay in the stream because a full Redis could not park them."""
        return {key for entry in self.stuck.values() for key in entry.keys}

    def forget(self) -> None:
        """Trust nothing that was read: start from the head, and let the ledger say (rule 9)."""
        self.withheld.forget()
        self.retreat()

    def retreat(self) -> None:
        """Read anew what is not settled; what is committed and withheld is known to be there."""
        self.cursor = self.withheld.last or "-"
        self.rewind = self.reread = False
        self.page = None
        self.has_lines = self.has_bodies = True
        self.next_retry = self.next_due = 0.0
        if not self.withheld:
            self.later.clear()
            self.stuck.clear()

    def met(self, entries: Sequence[Entry]) -> list[Entry]:
        """Parked entries that may have their turn: what comes before them in the stream had its.

        A failover brings back what was applied before they were parked, and is read anew.
        """
        if self.reread:
            return list(entries)
        if self.page is not None:
            return [e for e in entries if order(e.entry_id) < order(self.page.first)]
        return [
            e for e in entries if self.cursor != "-" and order(e.entry_id) <= order(self.cursor)
        ]


class Owners:
    """Takes and gives up lanes for one processor."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self.lanes: dict[str, OwnedLane] = {}
        self.buffer = ""
        self.loss = ""
        self._tokens: set[str] = set()

    @property
    def owned(self) -> list[OwnedLane]:
        """The lanes that this processor owns."""
        return [lane for lane in self.lanes.values() if lane.owner is not None]

    def meet(self, redis: RedisConnection) -> None:
        """Learn the buffer's identity and lanes; a changed identity is a loss event (rule 1)."""
        found = registry.identity(redis, self._settings.namespace)
        if self.buffer and found != self.buffer:
            self.report(f"the buffer changed its identity from {self.buffer} to {found}: what was"
                         " accepted and not committed before that is lost")  # fmt: skip
            self.lanes.clear()
        self.buffer = found
        drained = self._settings.drain
        for name in {*self._configured(), *registry.registered(redis, self._settings.namespace)}:
            lane = Lane(self._settings.namespace, name)
            if name not in self.lanes and (not drained or lane.queue in drained):
                queue = self._settings.queues.get(lane.queue)
                self.lanes[name] = OwnedLane(lane, queue.weight if queue else 1)

    def _configured(self) -> Iterable[str]:
        for name, queue in self._settings.queues.items():
            yield from (f"{name}:{n}" for n in range(queue.partitions))

    def take(self, database: PostgresSession, redis: RedisConnection) -> bool:
        """Try to own every lane that is not owned yet; look anew at each after a reconnect.

        Whether the owned lanes are others than before.
        """
        for lane in self.lanes.values():
            if lane.owner is None:
                self._take(database, lane)
            if lane.owner is not None and lane.seen != redis.generation:
                if lane.withheld.generation != redis.generation or (
                    lane.epoch and lane.epoch + 1 != lane.owner.epoch
                ):
                    # Read on another connection, or somebody else owned the lane in between.
                    lane.forget()
                lane.retreat()
                lane.epoch = 0
                self._look_for_rollback(database, redis, lane)
                rebuild(database, redis, lane)
                lane.seen = redis.generation
                crashpoint.reach("lane-owned")
        before, self._tokens = self._tokens, {x.owner.token for x in self.owned if x.owner}
        return before != self._tokens

    def _take(self, database: PostgresSession, lane: OwnedLane) -> None:
        try:
            lane.owner = lane_rows.acquire(
                database, self._settings.namespace, self.buffer, lane.lane.name,
                site=self._settings.site, instance=self._instance,
            )  # fmt: skip
        except DatabaseError as error:
            if judge(ErrorReply(error.sqlstate)) is Verdict.CONTENTION:
                return
            raise
        if lane.owner is None:
            return
        lane.seen = 0
        metrics.count("takeovers")
        log.info("lane %s: owner, epoch %d", lane.lane.name, lane.owner.epoch)

    def _look_for_rollback(
        self, database: PostgresSession, redis: RedisConnection, lane: OwnedLane
    ) -> None:
        assert lane.owner is not None
        rows = database.run(
            "SELECT last_entry, (extract(epoch FROM pruned_to) * 1000)::bigint FROM processor.lane"
            f" WHERE buffer = '{self.buffer}' AND lane = {quoted(lane.lane.name)}"
        )
        last, pruned_to = rows[0]
        generated = last_generated(redis, lane.lane)
        if last is not None and order(generated) < order(last):
            # Redis was restored or failed over to a replica that lacked the end (rule 23).
            self.report(f"lane {lane.lane.name}: Redis went back from entry {last} to {generated}:"
                         " what was accepted between them and not committed is lost")  # fmt: skip
        # A producer's new entry hides that the stream is old, but not that Redis' own mark is.
        mark = int(redis.call("GET", lane.lane.pruned) or 0)
        lane.suspect_to = pruned_to if pruned_to is not None and mark < pruned_to else None
        if lane.suspect_to is not None:
            self.report(f"lane {lane.lane.name}: Redis went back to before the ledger was pruned:"
                         " what it brings back from then becomes dead letters")  # fmt: skip

    def report(self, text: str) -> None:
        """Say loudly what was, or may have been, lost."""
        self.loss = text
        log.error("loss window: %s", text)

    @property
    def standing_by(self) -> bool:
        """Whether there are lanes and none of them is this processor's."""
        return bool(self.lanes) and not self.owned

    def lose(self) -> None:
        """The session is gone, and with it every lane."""
        for lane in self.lanes.values():
            if lane.owner is not None:
                lane.epoch, lane.owner = lane.owner.epoch, None
            lane.retreat()
            metrics.gauge("owner", 0.0, lane=lane.lane.name)

    def give_up(self, database: PostgresSession) -> None:
        """Let others take the lanes at once, at a clean stop."""
        given = self.owned
        self.lose()
        for lane in given:
            lane_rows.give_up(database, self._settings.namespace, self.buffer, lane.lane.name)


def rebuild(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    """Make the lines of blocked keys agree with the dead letters that hold them.

    Needed after Redis lost them, and after a crash between a commit and the release that follows.
    """
    try:
        _put_holders(database, redis, lane)
        _let_go(database, redis, lane)
    except RedisRefused as refused:
        if refused.code != "OOM":
            raise
        log.warning("lane %s: lines not rebuilt while Redis is full", lane.lane.name)


def _put_holders(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    assert lane.owner is not None
    after = "00000000-0000-0000-0000-000000000000"
    while letters := dead_letters.open_holds(database, lane.owner, after, _PAGE):
        after = letters[-1].id
        members = [parked.member(k, x.entry_id, x.id) for x in letters for k in x.keys]
        if members:
            redis.call("ZADD", lane.lane.blocked, *(p for m in members for p in (0, m)))


def _let_go(database: PostgresSession, redis: RedisConnection, lane: OwnedLane) -> None:
    after = b""
    while True:
        heads, after = parked.holders(redis, lane.lane, after, _PAGE)
        bodies = parked.has_bodies(redis, lane.lane, [h.id for h in heads])
        bare = [h for h in heads if h.id not in bodies]
        known = outcomes.find(database, [h.id for h in bare])
        parked.have_turn(redis, lane.lane, bodies, 0.0)
        for head in bare:
            stream = lane.lane.stream
            # A failover lost the dead letter that held the key, and nothing else is left of it.
            left = head.id not in known and not redis.call(
                "XRANGE", stream, head.entry_id, head.entry_id)  # fmt: skip
            if left or (head.id in known and known[head.id].outcome != "dead"):
                parked.release(redis, lane.lane, [(head.id, head.entry_id, [head.key])], 0.0)
        if not after:
            return
