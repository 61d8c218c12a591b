"""Writes transactions into the buffer in Redis.

Each submit is one write and one wait, bounded by `redis.timeout`, and needs no PostgreSQL. If the
reply is lost, the same bytes are sent a second time: because the transaction id is the same, both
copies have one effect (rule 11). Redis accepts all transactions of a write or none (rule 81), and
none if what the write relies on has changed (see `fence`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from processor import crashpoint
from processor.buffer import delayed, stream
from processor.buffer.lane import Lane, lane_name
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.redis_client import Command, pack
from processor.connections.redis_pool import RedisPool
from processor.errors import (
    BufferFull,
    ConfigError,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    SubmitUnknown,
)
from processor.producer import fence
from processor.producer.room import LaneRoom, Room
from processor.producer.silence import Silence
from processor.receipts.receipt import Receipt
from processor.telemetry import metrics
from processor.transaction.encoding import Encoded

#: The commands that add one transaction. The first adds it to its lane, others to the overlay.
Addition = list[Command]

_TRIES = 2
_CLOCK_AGE = 1.0
#: How often a write is sent again after Redis refused it because its terms had changed.
_FENCED = 20
_MULTI = pack(("MULTI",))
_EXEC = pack(("EXEC",))


class Writer:
    """Submits by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._silence = Silence()
        self._overlay = Overlay(settings)
        self._shows_tables = bool(settings.overlay.tables)
        self._lanes: dict[str, LaneRoom] = {}
        self._shown = Room("the overlay", ("HLEN", self._overlay.prefix))
        #: When Redis was asked for the time (monotonic), and its clock minus ours.
        self._clock = (float("-inf"), 0.0)

    def submit(self, encoded: Encoded) -> Receipt:
        """Add one transaction. Raises as `processor.submit`."""
        lane, room = self._lane(encoded)
        rooms = [room]
        addition = self._addition(lane, encoded, rooms)
        crashpoint.reach("submit-before-add")
        executed, identity = self._send((lane.name,), addition, rooms, encoded.id)
        crashpoint.reach("submit-after-add")
        return self._receipt(encoded, lane, executed[0], identity)

    def submit_many(self, many: Sequence[Encoded]) -> list[Receipt]:
        """Add transactions in order, in one write. Raises as `processor.submit`."""
        lanes: list[Lane] = []
        rooms: list[Room] = []
        commands: list[Command] = []
        firsts: list[int] = []
        for encoded in many:
            lane, room = self._lane(encoded)
            lanes.append(lane)
            rooms.append(room)
            firsts.append(len(commands))
            commands += self._addition(lane, encoded, rooms)
        names = {lane.name for lane in lanes}
        rooms = [*dict.fromkeys(rooms)]
        executed, identity = self._send(names, commands, rooms, many[0].id)
        return [
            self._receipt(one, lane, executed[first], identity)
            for one, lane, first in zip(many, lanes, firsts, strict=True)
        ]

    def clock(self) -> float:
        """Return the time by the clock of Redis, Unix seconds; asked at most once a second."""
        asked, offset = self._clock
        if time.monotonic() - asked > _CLOCK_AGE:
            try:
                seconds, micro = self._ask(("TIME",))
                now = int(seconds) + int(micro) / 1e6
            except RedisRefused:
                now = time.time()  # A user that was printed by an older release.
            asked, offset = time.monotonic(), now - time.monotonic()
            self._clock = asked, offset
        return time.monotonic() + offset

    def close(self) -> None:
        """Close the connections that are not in use; the next submit opens others."""
        self.pool.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child (P6)."""
        self.pool.drop()
        # Another thread of the parent may have been the probe.
        self._silence = Silence()

    def _lane(self, encoded: Encoded) -> tuple[Lane, Room]:
        """Return where a transaction goes, if there is room."""
        queue = self.settings.queues.get(encoded.queue)
        if queue is None:
            raise InvalidTransaction(
                "queue", f"{encoded.queue!r} is not configured",
                hint=f"one of {', '.join(sorted(self.settings.queues))}",
            )  # fmt: skip
        name = lane_name(encoded.queue, queue.partitions, encoded)
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = LaneRoom(Lane(self.settings.namespace, name))
        room = found.stream if encoded.due is None else found.scheduled
        if room.depth >= self.settings.buffer.limit:
            self._check(room)
        return found.lane, room

    def _addition(self, lane: Lane, encoded: Encoded, rooms: list[Room]) -> Addition:
        """The commands that add a transaction to its lane and to the overlay, both or neither."""
        may_show = self._shows_tables or encoded.cache
        shown = self._overlay.show(encoded, time.time(), lane.name) if may_show else []
        if not shown:
            return [self._add(lane, encoded)]
        if self._shown.depth >= self.settings.buffer.limit:
            self._check(self._shown)
        rooms.append(self._shown)
        return [self._add(lane, encoded), *shown]

    def _check(self, room: Room) -> None:
        """Ask Redis for the depth again, since the last known one is at the limit."""
        try:
            depth = room.depth = self._ask(room.query)
        except RedisRefused as refused:
            raise _refusal(refused) from None
        if depth >= self.settings.buffer.limit:
            metrics.count("refused")
            raise BufferFull(
                f"{room.what} holds {depth} entries, buffer.limit is"
                f" {self.settings.buffer.limit}", retry_after=max(1.0, self.settings.interval),
            )  # fmt: skip

    def _ask(self, query: Command) -> Any:
        return self.pool.ask(lambda connection: connection.call(*query))

    @staticmethod
    def _add(lane: Lane, encoded: Encoded) -> Command:
        if encoded.due is not None:
            return delayed.schedule(lane, encoded.body, encoded.due)
        return stream.add(lane, encoded.body, encoded.version)

    def _send(
        self, lanes: Collection[str], commands: list[Command], rooms: Sequence[Room],
        transaction_id: str,
    ) -> tuple[list[Any], str]:  # fmt: skip
        """Send the commands, all or none; return their replies and the identity of the buffer.

        The second try has only what the first one left of the timeout (rule 11).
        """
        deadline = time.monotonic() + self.settings.redis.timeout
        with self._silence:
            return self._try(lanes, commands, rooms, transaction_id, deadline)

    def _try(
        self, lanes: Collection[str], commands: list[Command], rooms: Sequence[Room],
        transaction_id: str, deadline: float,
    ) -> tuple[list[Any], str]:  # fmt: skip
        sent = False
        for attempt in range(1, _TRIES + 1):
            try:
                return self._write(lanes, commands, rooms, deadline)
            except RedisUnavailable as error:
                # What ended this connection has most likely ended all idle ones.
                self.pool.close()
                sent = sent or error.sent
                if attempt == _TRIES or error.timed_out:
                    if sent:
                        unknown = SubmitUnknown(transaction_id, str(error))
                        unknown.timed_out = error.timed_out
                        raise unknown from None
                    raise
            except (RedisRefused, ConfigError) as refused:
                # The reply to the first try was lost, and this refusal is not about that one.
                if sent:
                    raise SubmitUnknown(transaction_id, str(refused)) from None
                raise _refusal(refused) from None
        raise AssertionError

    def _write(
        self, lanes: Collection[str], commands: list[Command], rooms: Sequence[Room],
        deadline: float,
    ) -> tuple[list[Any], str]:  # fmt: skip
        """Have Redis carry out the commands, all or none; return their replies and the identity.

        Raises RedisUnavailable with `sent` if they may have been carried out.
        """
        queued = len(commands) + 2
        packed = [_MULTI, *map(pack, map(tuple, commands)), _EXEC, *[r.packed for r in rooms]]
        connection = self.pool.take()
        connection.deadline = deadline
        try:
            for _ in range(_FENCED):
                try:
                    terms = fence.terms(connection, self.settings, lanes)
                except RedisUnavailable as error:
                    error.sent = False
                    raise
                replies = connection.exchange(
                    b"".join([*packed, terms.renewal]), queued + len(rooms) + fence.RENEWING
                )
                fence.renewed(connection, terms, replies[-2:])
                for room, depth in zip(rooms, replies[queued:], strict=False):
                    if isinstance(depth, int):
                        room.depth = depth
                executed = replies[queued - 1]
                if isinstance(executed, list):
                    return executed, terms.identity
                if executed is not None:
                    raise _cause(replies[:queued])
                connection.memory.pop("terms", None)
        finally:
            connection.deadline = None
            self.pool.give(connection)
        raise RedisUnavailable("what the buffer says of itself changes all the time")

    @staticmethod
    def _receipt(encoded: Encoded, lane: Lane, reply: Any, identity: str) -> Receipt:
        if isinstance(reply, RedisRefused):
            raise _refusal(reply)
        if isinstance(reply, Exception):
            raise RedisUnavailable(
                f"Redis rejected the write: the key of lane {lane.name} holds another type"
            )
        entry_id = reply.decode() if isinstance(reply, bytes) else ""
        metrics.count("submitted")
        return Receipt(encoded.id, lane.name, entry_id, identity)


def _cause(replies: list[Any]) -> Exception:
    """Return why Redis did not carry out a write: its reply to EXEC only says that it did not."""
    refused = [reply for reply in replies if isinstance(reply, RedisRefused)]
    if any(not isinstance(reply, RedisRefused) and reply != b"QUEUED" for reply in replies[1:]):
        # MULTI was refused, and commands behind it were carried out one by one.
        unknown = RedisUnavailable(str(refused[0]))
        unknown.sent = True
        return unknown
    return refused[0]


def _refusal(refused: ConfigError | RedisRefused) -> Exception:
    if isinstance(refused, ConfigError):
        return refused
    # Memory may run out between the commands and EXEC, which then names the reason.
    if refused.code == "OOM" or (refused.code == "EXECABORT" and ": OOM " in str(refused)):
        metrics.count("refused")
        return BufferFull("Redis has reached its memory limit", retry_after=1.0)
    return RedisUnavailable(f"Redis rejected the write: {refused}")
