"""`processor.submit` and `processor.submit_many`: what a request handler calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from processor.config import loader
from processor.connections.shared import Shared
from processor.producer.writer import Writer
from processor.receipts.receipt import Receipt
from processor.telemetry import wakeup
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded

Submittable = Transaction | Mapping[str, Any] | str | bytes

_WRITTEN_AT_ONCE = 500
#: Redis holds a write in memory until it carries it out.
_BYTES_AT_ONCE = 4 << 20

_writer = Shared(Writer)


def submit(transaction: Submittable) -> Receipt:
    """Put a transaction into the buffer and wake the drain thread.

    Takes a `Transaction` or its JSON form. The receipt shows that Redis accepted it, and is as
    durable as Redis is configured to be.

    Raises InvalidTransaction if the transaction is malformed or its queue is not configured,
    BufferFull if the lane, the overlay or Redis itself is full, RedisUnavailable if nothing was
    accepted, and SubmitUnknown if the reply was lost twice. Submitting the same transaction again
    is always safe: its id makes it one effect.
    """
    writer = _writer.current()
    receipt = writer.submit(_encoded(writer, transaction))
    wakeup.wake_here()
    return receipt


def submit_many(transactions: Iterable[Submittable]) -> list[Receipt]:
    """Put many transactions into the buffer in order, some hundreds in each write.

    Returns the receipts in the order of the transactions. Raises as `submit`: the transactions of
    earlier writes are accepted by then, and none of the write that failed. Submitting all of them
    again is safe, and those that share a key keep their order.
    """
    writer = _writer.current()
    receipts: list[Receipt] = []
    for chunk in _chunks(_encoded(writer, one) for one in transactions):
        receipts += writer.submit_many(chunk)
        wakeup.wake_here()
    return receipts


def _encoded(writer: Writer, transaction: Submittable) -> Encoded:
    if not isinstance(transaction, Transaction):
        transaction = Transaction.parse(transaction)
    # A delay is counted by the clock of Redis, which also decides when it is over (rule 82).
    now = writer.clock() if transaction.is_delayed else 0.0
    settings = writer.settings
    return transaction.encode(
        now, settings.buffer.transaction_bytes, settings.database.longest_timeout
    )


def _chunks(transactions: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    chunk: list[Encoded] = []
    size = 0
    for encoded in transactions:
        chunk.append(encoded)
        size += len(encoded.body)
        if len(chunk) == _WRITTEN_AT_ONCE or size >= _BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# So that `with Transaction(...)` submits at its end, and an idempotency key has an id before.
Transaction.submitter = submit
Transaction.namespace = staticmethod(lambda: loader.current().namespace)
