"""Writes transactions into the buffer in Redis.

Each submit is one write and one wait, bounded by `redis.timeout`, and needs no PostgreSQL. If the
reply is lost, the same bytes are sent a second time: because the transaction id is the same, both
copies have one effect (rule 11). Redis accepts all transactions of a write or none (rule 81), and
none if what the write relies on has changed (see `fence`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from processor import crashpoint
from processor.buffer import delayed, stream
from processor.buffer.lane import Lane, lane_name
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.redis_client import Command, Packed
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
from processor.receipts.receipt import Receipt
from processor.telemetry import metrics
from processor.transaction.builder import Encoded

#: The command that returns the number of entries in a stream, a schedule or the overlay.
DepthQuery = tuple[str, str]
#: The commands that add one transaction. The first adds it to its lane, others to the overlay.
Addition = list[Command]

_TRIES = 2
_CLOCK_AGE = 1.0
#: How often a write is sent again after Redis refused it because its terms had changed.
_FENCED = 20
_MULTI = Packed("MULTI")
_EXEC = Packed("EXEC")


class Writer:
    """Submits by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._overlay = Overlay(settings)
        self._shows_tables = bool(settings.overlay.tables)
        self._lanes: dict[str, Lane] = {}
        self._depths: dict[DepthQuery, int] = {}
        #: When Redis was asked for the time (monotonic), and its clock minus ours.
        self._clock = (float("-inf"), 0.0)

    def submit(self, encoded: Encoded) -> Receipt:
        """Add one transaction. Raises as `processor.submit`."""
        lane = self._lane(encoded)
        queries = [_depth_query(lane, encoded)]
        addition = self._addition(lane, encoded, queries)
        crashpoint.reach("submit-before-add")
        replies, identity = self._send([lane], [addition], queries, encoded.id)
        crashpoint.reach("submit-after-add")
        return self._receipt(encoded, lane, replies[0], identity)

    def submit_many(self, many: Sequence[Encoded]) -> list[Receipt]:
        """Add transactions in order, in one write. Raises as `processor.submit`."""
        lanes = [self._lane(encoded) for encoded in many]
        queries = list(map(_depth_query, lanes, many))
        additions = [
            self._addition(lane, one, queries) for lane, one in zip(lanes, many, strict=True)
        ]
        queries = [*dict.fromkeys(queries)]
        replies, identity = self._send([*dict.fromkeys(lanes)], additions, queries, many[0].id)
        return [
            self._receipt(one, lane, reply, identity)
            for one, lane, reply in zip(many, lanes, replies, strict=True)
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

    def _lane(self, encoded: Encoded) -> Lane:
        queue = self.settings.queues.get(encoded.queue)
        if queue is None:
            raise InvalidTransaction(
                "queue", f"{encoded.queue!r} is not configured",
                hint=f"one of {', '.join(sorted(self.settings.queues))}",
            )  # fmt: skip
        name = lane_name(encoded.queue, queue.partitions, encoded)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(self.settings.namespace, name)
        query = _depth_query(lane, encoded)
        # The depth of a lane is unknown before the first write to it.
        if self._depths.get(query, sys.maxsize) >= self.settings.buffer.limit:
            self._check_room(f"lane {lane.name}", query)
        return lane

    def _addition(self, lane: Lane, encoded: Encoded, queries: list[DepthQuery]) -> Addition:
        """The commands that add a transaction to its lane and to the overlay, both or neither."""
        may_show = self._shows_tables or encoded.cache
        shown = self._overlay.show(encoded, time.time()) if may_show else []
        if not shown:
            return [self._add(lane, encoded)]
        query: DepthQuery = ("HLEN", self._overlay.prefix)
        if self._depths.get(query, sys.maxsize) >= self.settings.buffer.limit:
            self._check_room("the overlay", query)
        queries.append(query)
        return [self._add(lane, encoded), *shown]

    def _check_room(self, what: str, query: DepthQuery) -> None:
        """Ask Redis for the depth again, since the last known one is at the limit.

        Each concurrent thread may still exceed the limit by one entry.
        """
        try:
            depth = self._ask(query)
        except RedisRefused as refused:
            raise _refusal(refused) from None
        self._depths[query] = depth
        if depth >= self.settings.buffer.limit:
            metrics.count("refused")
            raise BufferFull(
                f"{what} holds {depth} entries, buffer.limit is"
                f" {self.settings.buffer.limit}", retry_after=max(1.0, self.settings.interval),
            )  # fmt: skip

    def _ask(self, query: Command) -> Any:
        return self.pool.ask(lambda connection: connection.call(*query))

    @staticmethod
    def _add(lane: Lane, encoded: Encoded) -> Command:
        if encoded.due is not None:
            return delayed.schedule(lane, encoded.body, encoded.due)
        return stream.add(lane, encoded.body)

    def _send(
        self, lanes: Sequence[Lane], additions: Sequence[Addition], queries: Sequence[DepthQuery],
        transaction_id: str,
    ) -> tuple[list[Any], str]:  # fmt: skip
        """Send the additions and then the depth queries, in one write.

        Returns the reply to each addition, and the identity of the buffer.
        """
        commands = [command for addition in additions for command in addition]
        sent = False
        for attempt in range(1, _TRIES + 1):
            try:
                executed, identity = self._write(lanes, commands, queries)
                return _of_additions(additions, executed), identity
            except RedisUnavailable as error:
                # What ended this connection has most likely ended all idle ones.
                self.pool.close()
                sent = sent or error.sent
                if attempt == _TRIES:
                    if sent:
                        raise SubmitUnknown(transaction_id, str(error)) from None
                    raise
            except (RedisRefused, ConfigError) as refused:
                # The reply to the first try was lost, and this refusal is not about that one.
                if sent:
                    raise SubmitUnknown(transaction_id, str(refused)) from None
                raise _refusal(refused) from None
        raise AssertionError

    def _write(
        self, lanes: Sequence[Lane], commands: list[Command], queries: Sequence[DepthQuery]
    ) -> tuple[list[Any], str]:
        """Have Redis carry out the commands, all or none; return their replies and the identity.

        Raises RedisUnavailable with `sent` if they may have been carried out.
        """
        connection = self.pool.take()
        try:
            for _ in range(_FENCED):
                try:
                    terms = fence.terms(connection, self.settings, lanes)
                except RedisUnavailable as error:
                    error.sent = False
                    raise
                replies = connection.calls([_MULTI, *commands, _EXEC, *queries, *terms.renewal])
                fence.renewed(connection, terms, replies[-2:])
                executed = replies[len(commands) + 1]
                self._note_depths(queries, replies[len(commands) + 2 : -len(terms.renewal)])
                if isinstance(executed, list):
                    return executed, terms.identity
                if executed is not None:
                    raise _cause(replies[: len(commands) + 2])
                connection.memory.pop("terms", None)
        finally:
            self.pool.give(connection)
        raise RedisUnavailable("what the buffer says of itself changes all the time")

    def _note_depths(self, queries: Sequence[DepthQuery], replies: Sequence[Any]) -> None:
        for query, depth in zip(queries, replies, strict=True):
            if isinstance(depth, int):
                self._depths[query] = depth

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


def _depth_query(lane: Lane, encoded: Encoded) -> DepthQuery:
    """Delayed transactions are counted apart from those in the stream."""
    return ("XLEN", lane.stream) if encoded.due is None else ("ZCARD", lane.scheduled)


def _of_additions(additions: Sequence[Addition], executed: list[Any]) -> list[Any]:
    """Return the reply to the first command of each addition, which adds it to its lane."""
    if len(additions) == len(executed):
        return executed
    starts = accumulate(map(len, additions[:-1]), initial=0)
    return [executed[start] for start in starts]


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
