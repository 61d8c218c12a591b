"""Writes transactions into the buffer in Redis.

Each submit is one write and one wait, bounded by `redis.timeout`, and needs no PostgreSQL. If the
reply is lost, the same bytes are sent a second time: because the transaction id is the same, both
copies have one effect (rule 11).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from processor import crashpoint
from processor.buffer import delayed, partitions, registry, stream
from processor.buffer.lane import Lane, lane_name
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, RedisPool
from processor.errors import (
    BufferFull,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    SubmitUnknown,
)
from processor.receipts.receipt import Receipt
from processor.telemetry import metrics
from processor.transaction.builder import Encoded

#: The command that returns the number of entries in a stream, a schedule or the overlay.
DepthQuery = tuple[str, str]
#: The commands that add one transaction: a single one, or MULTI to EXEC if it is in the overlay.
Addition = list[Command]

_TRIES = 2


class Writer:
    """Submits by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._overlay = Overlay(settings)
        self._shows_tables = bool(settings.overlay.tables)
        self._lanes: dict[str, Lane] = {}
        self._depths: dict[DepthQuery, int] = {}

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
        return [("MULTI",), self._add(lane, encoded), *shown, ("EXEC",)]

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

    def _ask(self, query: DepthQuery) -> Any:
        for attempt in range(1, _TRIES + 1):
            connection = self.pool.take()
            try:
                return connection.call(*query)
            except RedisUnavailable:
                self.pool.close()
                if attempt == _TRIES:
                    raise
            finally:
                self.pool.give(connection)
        raise AssertionError

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
        sent = False
        commands = [command for addition in additions for command in addition]
        for attempt in range(1, _TRIES + 1):
            connection = self.pool.take()
            sending = False
            try:
                identity = self._introduce(connection, lanes)
                sending = True
                replies = connection.calls([*commands, *queries])
                self._note_depths(queries, replies[len(commands) :])
                added = _addition_replies(additions, replies)
                if sent:
                    _require_all_added(added, transaction_id)
                return added, identity
            except RedisUnavailable as error:
                # What ended this connection has most likely ended all idle ones.
                self.pool.close()
                sent = sent or (sending and error.sent)
                if attempt == _TRIES:
                    if sent:
                        raise SubmitUnknown(transaction_id, str(error)) from None
                    raise
            except RedisRefused as refused:
                if sent:
                    raise SubmitUnknown(transaction_id, str(refused)) from None
                raise _refusal(refused) from None
            finally:
                self.pool.give(connection)
        raise AssertionError

    def _introduce(self, connection: RedisConnection, lanes: Sequence[Lane]) -> str:
        """Return the identity of the buffer, read once per connection; register new lanes."""
        memory = connection.memory
        if "identity" not in memory or not connection.alive:
            identity = registry.identity(connection, self.settings.namespace)
            memory = connection.memory
            memory["identity"] = identity
            memory["lanes"] = set()
        new = [lane.name for lane in lanes if lane.name not in memory["lanes"]]
        if new:
            for queue in {lane.queue for lane in lanes}:
                count = self.settings.queues[queue].partitions
                partitions.agree(connection, self.settings.namespace, queue, count)
            connection.call(*registry.register(self.settings.namespace, new))
            memory["lanes"].update(new)
        return str(memory["identity"])

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


def _addition_replies(additions: Sequence[Addition], replies: Sequence[Any]) -> list[Any]:
    """Of the replies to each addition, the one that shows whether Redis accepted it."""
    found: list[Any] = []
    start = 0
    for addition in additions:
        own = replies[start : start + len(addition)]
        start += len(addition)
        # A full Redis refuses the commands inside MULTI, and with them the EXEC.
        refused = (reply for reply in own if isinstance(reply, RedisRefused))
        accepted = next(refused, own[-1])
        found.append(accepted[0] if isinstance(accepted, list) else accepted)
    return found


def _require_all_added(replies: Sequence[Any], transaction_id: str) -> None:
    """Raise SubmitUnknown if the second try was refused.

    The reply to the first try was lost, and the refusal says nothing about that one.
    """
    for reply in replies:
        if isinstance(reply, RedisRefused):
            raise SubmitUnknown(transaction_id, str(reply))


def _refusal(refused: RedisRefused) -> Exception:
    if refused.code == "OOM":
        metrics.count("refused")
        return BufferFull("Redis has reached its memory limit", retry_after=1.0)
    return RedisUnavailable(f"Redis rejected the write: {refused}")
