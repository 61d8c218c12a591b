"""What a request handler calls: put transactions into the buffer and wake the drain.

One write and one wait a submit, with a deadline, even while PostgreSQL is away. A lost reply is
answered by sending the same bytes once more: the id makes it one effect (rule 11).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from processor import crashpoint
from processor.buffer import delayed, partitions, registry, stream
from processor.buffer.lane import Lane, lane_name
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, RedisPool
from processor.connections.shared import Shared
from processor.errors import (
    BufferFull,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    SubmitUnknown,
)
from processor.receipts.receipt import Receipt
from processor.telemetry import metrics, wakeup
from processor.transaction.builder import Encoded, Transaction

Submittable = Transaction | Mapping[str, Any] | str | bytes

#: A command that asks how full a part of a lane is, or the overlay.
Fullness = tuple[str, str]
#: What adds one transaction: one command, or MULTI to EXEC if the overlay shows it.
Adding = list[Command]

_TRIES = 2
_AT_ONCE = 500


class Producer:
    """Submits by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = RedisPool(settings.redis.url, settings.redis.timeout)
        self._overlay = Overlay(settings)
        self._lanes: dict[str, Lane] = {}
        self._depth: dict[Fullness, int] = {}

    def submit(self, encoded: Encoded) -> Receipt:
        """Add one transaction. Raises as `processor.submit` says."""
        lane = self._lane(encoded)
        asked = [_fullness(lane, encoded)]
        adding = self._adding(lane, encoded, asked)
        crashpoint.reach("submit-before-add")
        replies, identity = self._calls([lane], [adding], asked, encoded.id)
        crashpoint.reach("submit-after-add")
        return self._receipt(encoded, lane, replies[0], identity)

    def submit_many(self, many: Sequence[Encoded]) -> list[Receipt]:
        """Add transactions in order in one write."""
        lanes = [self._lane(encoded) for encoded in many]
        asked = list(map(_fullness, lanes, many))
        adds = [self._adding(lane, one, asked) for lane, one in zip(lanes, many, strict=True)]
        asked = [*dict.fromkeys(asked)]
        replies, identity = self._calls([*dict.fromkeys(lanes)], adds, asked, many[0].id)
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
        asked = _fullness(lane, encoded)
        # Before its first write a producer does not know how full the lane is.
        if self._depth.get(asked, sys.maxsize) >= self.settings.buffer.limit:
            self._see_room(f"lane {lane.name}", asked)
        return lane

    def _adding(self, lane: Lane, encoded: Encoded, asked: list[Fullness]) -> Adding:
        """What adds a transaction: accepted and shown at once, or neither."""
        shown = self._overlay.show(encoded, time.time())
        if not shown:
            return [self._add(lane, encoded)]
        full: Fullness = ("HLEN", self._overlay.prefix)
        if self._depth.get(full, sys.maxsize) >= self.settings.buffer.limit:
            self._see_room("the overlay", full)
        asked.append(full)
        return [("MULTI",), self._add(lane, encoded), *shown, ("EXEC",)]

    def _see_room(self, place: str, asked: Fullness) -> None:
        """It was full when last seen: look before adding (soft by one for each thread)."""
        try:
            depth = self._ask(asked)
        except RedisRefused as refused:
            raise _refusal(refused) from None
        self._depth[asked] = depth
        if depth >= self.settings.buffer.limit:
            metrics.count("refused")
            raise BufferFull(
                f"{place} holds {depth} entries, buffer.limit is"
                f" {self.settings.buffer.limit}", retry_after=max(1.0, self.settings.interval),
            )  # fmt: skip

    def _ask(self, question: Fullness) -> Any:
        for attempt in range(1, _TRIES + 1):
            connection = self.pool.take()
            try:
                return connection.call(*question)
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

    def _calls(
        self, lanes: Sequence[Lane], adds: Sequence[Adding], asked: Sequence[Fullness],
        transaction_id: str,
    ) -> tuple[list[Any], str]:  # fmt: skip
        """Send the adds, and behind them what is asked; replies and the buffer's identity."""
        sent = False
        commands = [command for adding in adds for command in adding]
        for attempt in range(1, _TRIES + 1):
            connection = self.pool.take()
            adding = False
            try:
                identity = self._introduce(connection, lanes)
                adding = True
                replies = connection.calls([*commands, *asked])
                self._note_depths(asked, replies[len(commands) :])
                added = _added(adds, replies)
                if sent:
                    _see_all_added(added, transaction_id)
                return added, identity
            except RedisUnavailable as error:
                # What ended one connection has mostly ended all that were idle.
                self.pool.close()
                sent = sent or (adding and error.sent)
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
        """On a new connection learn the buffer's identity; register each lane once on it."""
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

    def _note_depths(self, asked: Sequence[Fullness], replies: Sequence[Any]) -> None:
        for question, depth in zip(asked, replies, strict=True):
            if isinstance(depth, int):
                self._depth[question] = depth

    @staticmethod
    def _receipt(encoded: Encoded, lane: Lane, reply: Any, identity: str) -> Receipt:
        if isinstance(reply, RedisRefused):
            raise _refusal(reply)
        if isinstance(reply, Exception):
            raise RedisUnavailable("Redis takes no entries now: something else has the lane's name")
        entry_id = reply.decode() if isinstance(reply, bytes) else ""
        metrics.count("submitted")
        return Receipt(encoded.id, lane.name, entry_id, identity)


_producer = Shared(Producer)


def submit(transaction: Submittable) -> Receipt:
    """Put a transaction into the buffer and wake the drain.

    Takes a `Transaction` or its JSON form. Accepted means: as durable as Redis was told to make it.
    Raises InvalidTransaction, BufferFull, RedisUnavailable, and SubmitUnknown if the reply was lost
    twice - then, as always, submitting the same transaction again is safe.
    """
    producer = _producer.current()
    receipt = producer.submit(_encoded(producer, transaction))
    wakeup.wake()
    return receipt


def submit_many(transactions: Iterable[Submittable]) -> list[Receipt]:
    """Put many transactions into the buffer, in order, some hundreds in each write.

    The receipts come in the order of the transactions. Raises as `submit`; the ones before the
    failing write are accepted then, and submitting all of them again is safe.
    """
    producer = _producer.current()
    receipts: list[Receipt] = []
    for chunk in _chunks(transactions):
        receipts += producer.submit_many([_encoded(producer, one) for one in chunk])
        wakeup.wake()
    return receipts


def _encoded(producer: Producer, transaction: Submittable) -> Encoded:
    if not isinstance(transaction, Transaction):
        transaction = Transaction.parse(transaction)
    return transaction.encode(time.time(), producer.settings.buffer.transaction_bytes)


def _chunks(transactions: Iterable[Submittable]) -> Iterator[list[Submittable]]:
    iterator = iter(transactions)
    while chunk := list(islice(iterator, _AT_ONCE)):
        yield chunk


def _fullness(lane: Lane, encoded: Encoded) -> Fullness:
    """What delayed work fills is another part of the lane."""
    return ("XLEN", lane.stream) if encoded.due is None else ("ZCARD", lane.scheduled)


def _added(adds: Sequence[Adding], replies: Sequence[Any]) -> list[Any]:
    """Of the replies to each adding that which tells whether it was accepted."""
    found: list[Any] = []
    place = 0
    for adding in adds:
        own = replies[place : place + len(adding)]
        place += len(adding)
        # A full Redis refuses the commands in between, and then all of them.
        refused = (reply for reply in own if isinstance(reply, RedisRefused))
        done = next(refused, own[-1])
        found.append(done[0] if isinstance(done, list) else done)
    return found


def _see_all_added(replies: Sequence[Any], transaction_id: str) -> None:
    """The first try's reply was lost: a refusal of the second one says nothing of the first."""
    for reply in replies:
        if isinstance(reply, RedisRefused):
            raise SubmitUnknown(transaction_id, str(reply))


def _refusal(refused: RedisRefused) -> Exception:
    if refused.code == "OOM":
        metrics.count("refused")
        return BufferFull("Redis has reached its memory limit", retry_after=1.0)
    return RedisUnavailable(f"Redis takes no entries now: {refused}")


Transaction.submitter = submit
