"""The builder of transactions: what a producer makes, checked once on its way to the buffer.

Values are checked where they are added, the whole where it is encoded; errors name the field. The
records that travel are in `operation`, what the drain reads of them is in `entry`.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction.decode_errors import explained
from processor.transaction.operations import (
    Delete,
    Document,
    Insert,
    Operation,
    Statement,
    Update,
    Upsert,
    documents,
    encoder,
)
from processor.transaction.operations import operations as operation_decoder
from processor.transaction.options import (
    cache_values,
    decided_id,
    due_text,
    instant,
    seconds,
    text,
    whole,
)
from processor.transaction.values import identifier, key_text, plain, plain_mapping, plain_rows


class Encoded(msgspec.Struct, frozen=True):
    """A checked transaction on its way into the buffer."""

    id: str
    body: bytes
    queue: str
    keys: tuple[str, ...]
    due: float | None
    operations: tuple[Operation, ...] = ()
    cache: dict[str, Any] | None = None


class Transaction:
    """Operations that become one effect, in the order in which they are added.

    The id is drawn here (or decided by `id` or `idempotency_key`), so submitting the same object
    twice is one effect. Methods add in place and return the transaction itself::

        with Transaction(key="order-42") as t:
            t.insert("orders", {"id": order, "amount": 25})
            t.update("account", add={"balance": 25}, where={"id": 7}, expect=1)

    `with` submits at a clean exit and submits nothing if an exception leaves the block.

    Parameters: `queue` (default "default"); `key` or `keys` (texts; transactions that share one
    commit in accept order); `delay` (seconds) or `due` (an aware datetime, or ISO 8601 with zone);
    `attempts` (tries before it is dead); `timeout` (seconds a statement of it may take); `batch`
    and `trace` (texts carried along); `cache` (names and values that `processor.cached` gives until
    the effect can be read everywhere). Raises InvalidTransaction, naming the field.
    """

    # Set by `producer`, which stands on a higher floor: `with` must be able to submit.
    submitter: ClassVar[Callable[[Transaction], Any] | None] = None

    __slots__ = ("_document", "_operations", "cache", "id", "receipt")

    def __init__(
        self,
        *,
        id: str | uuid.UUID | None = None,
        idempotency_key: str | None = None,
        queue: str | None = None,
        key: str | None = None,
        keys: Sequence[str] | None = None,
        delay: float | None = None,
        due: datetime.datetime | str | None = None,
        attempts: int | None = None,
        timeout: float | None = None,
        batch: str | None = None,
        trace: str | None = None,
        cache: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = decided_id(id, idempotency_key)
        self.receipt: Any = None
        self._operations: list[Operation] = []
        self.cache = None if cache is None else cache_values(cache)
        if isinstance(keys, str):
            raise InvalidTransaction("keys", "a text", hint='use key="..." or a list')
        self._document = Document(
            queue=text("queue", queue),
            key=text("key", key),
            keys=None
            if keys is None
            else [key_text(f"keys[{n}]", k) for n, k in enumerate(keys)],
            delay=seconds("delay", delay),
            due=due_text(due),
            attempts=whole("attempts", attempts, 1),
            timeout=seconds("timeout", timeout, 0.001),
            batch=text("batch", batch),
            trace=text("trace", trace),
        )
        if key is not None and keys is not None:
            raise InvalidTransaction("keys", "given together with key", hint="give one of them")
        if delay is not None and due is not None:
            raise InvalidTransaction("due", "given together with delay", hint="give one of them")

    def insert(
        self,
        table: str,
        values: Mapping[str, Any] | None = None,
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """Insert one row, or `rows` of equal columns."""
        at = self._place()
        if (values is None) == (rows is None):
            raise InvalidTransaction(at, "insert needs either values or rows")
        checked = None if values is None else plain_mapping(f"{at}.values", values)
        many = None if rows is None else plain_rows(f"{at}.rows", rows)
        return self._add(Insert(identifier(f"{at}.table", table), checked, many))

    def upsert(self, table: str, values: Mapping[str, Any], conflict: Sequence[str]) -> Self:
        """Insert a row, or set its other columns where `conflict` is taken already."""
        at = self._place()
        checked = plain_mapping(f"{at}.values", values)
        if isinstance(conflict, str) or not conflict:
            raise InvalidTransaction(f"{at}.conflict", "needs a list of columns", hint='["id"]')
        for column in conflict:
            if column not in checked:
                raise InvalidTransaction(f"{at}.conflict", f"column {column!r} is not in values")
        return self._add(Upsert(identifier(f"{at}.table", table), checked, list(conflict)))

    def update(
        self,
        table: str,
        set: Mapping[str, Any] | None = None,
        *,
        add: Mapping[str, Any] | None = None,
        where: Mapping[str, Any],
        expect: int | None = None,
    ) -> Self:
        """Set columns and/or add to them where the columns of `where` are equal.

        `expect` is the number of rows that must be met; another number makes it poison.
        """
        at = self._place()
        if not set and not add:
            raise InvalidTransaction(at, "update needs set or add")
        both = {*(set or ())} & {*(add or ())}
        if both:
            raise InvalidTransaction(f"{at}.add", f"column {min(both)!r} is also in set")
        return self._add(
            Update(
                identifier(f"{at}.table", table),
                plain_mapping(f"{at}.where", where),
                plain_mapping(f"{at}.set", set) if set else None,
                plain_mapping(f"{at}.add", add) if add else None,
                whole(f"{at}.expect", expect, 0),
            )
        )

    def delete(self, table: str, where: Mapping[str, Any], *, expect: int | None = None) -> Self:
        """Delete the rows whose columns equal `where`; `expect` as in `update`."""
        at = self._place()
        checked = plain_mapping(f"{at}.where", where)
        count = whole(f"{at}.expect", expect, 0)
        return self._add(Delete(identifier(f"{at}.table", table), checked, count))

    def statement(self, name: str, params: Mapping[str, Any] | None = None) -> Self:
        """Run a statement that was registered under `name`."""
        at = self._place()
        if not isinstance(name, str) or not name:
            raise InvalidTransaction(f"{at}.name", "needs the name of a registered statement")
        checked = plain_mapping(f"{at}.params", params) if params else {}
        return self._add(Statement(name, checked))

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations added so far."""
        return tuple(self._operations)

    @classmethod
    def parse(cls, source: str | bytes | Mapping[str, Any]) -> Transaction:
        """A transaction from its JSON form (text, bytes or a mapping).

        Raises InvalidTransaction, naming the field.
        """
        raw = _json(source) if isinstance(source, Mapping) else source
        try:
            document = documents.decode(raw)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise explained(error) from None
        try:
            operations = operation_decoder.decode(document.operations)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise explained(error, "operations") from None
        made = cls(
            id=document.id,
            **{name: getattr(document, name) for name in _OPTIONS},
        )
        for operation in operations:
            made._replay(operation)
        return made

    def encode(self, now: float, limit: int) -> Encoded:
        """The checked bytes for the buffer; `now` in Unix seconds, `limit` in bytes.

        Raises InvalidTransaction if there are no operations or the bytes exceed the limit.
        """
        if not self._operations:
            raise InvalidTransaction("operations", "none given", hint="add at least one operation")
        given = self._document
        due = now + given.delay if given.delay is not None else instant(given.due)
        try:
            document = msgspec.structs.replace(
                given, id=self.id, queue=None,
                operations=msgspec.Raw(encoder.encode(self._operations)),
            )  # fmt: skip
            body = encoder.encode(document)
        except UnicodeEncodeError:
            raise InvalidTransaction("operations", "text with a lone surrogate") from None
        except ValueError:
            # Python writes no longer ones: the time for it grows with the square.
            raise InvalidTransaction(
                "operations", "a whole number of more than 4300 digits",
                hint="send it as Decimal or text",
            ) from None  # fmt: skip
        if len(body) > limit:
            raise InvalidTransaction(
                "operations", f"{len(body)} bytes; the limit is {limit} (buffer.transaction_bytes)",
                hint="store large content elsewhere and submit a reference",
            )  # fmt: skip
        keys = (given.key,) if given.key is not None else tuple(dict.fromkeys(given.keys or ()))
        return Encoded(
            self.id, body, given.queue or "default", keys, due, self.operations, self.cache
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None:
            if Transaction.submitter is None:
                raise InvalidTransaction("transaction", "no producer is loaded to submit it")
            self.receipt = Transaction.submitter(self)

    def __repr__(self) -> str:
        kinds = ", ".join(type(o).__name__.lower() for o in self._operations)
        return f"<Transaction {self.id}: {kinds or 'empty'}>"

    def _place(self) -> str:
        return f"operations[{len(self._operations)}]"

    def _add(self, operation: Operation) -> Self:
        self._operations.append(operation)
        return self

    def _replay(self, op: Operation) -> None:
        # Through the same door as the builder, so that both forms are checked alike.
        if isinstance(op, Insert):
            self.insert(op.table, op.values, rows=op.rows)
        elif isinstance(op, Upsert):
            self.upsert(op.table, op.values, op.conflict)
        elif isinstance(op, Update):
            self.update(op.table, op.set, add=op.add, where=op.where, expect=op.expect)
        elif isinstance(op, Delete):
            self.delete(op.table, op.where, expect=op.expect)
        else:
            self.statement(op.name, op.params)


_OPTIONS = ("idempotency_key", "queue", "key", "keys", "delay", "due", "attempts", "timeout",
            "batch", "trace", "cache")  # fmt: skip


def _json(source: Mapping[str, Any]) -> str | bytes:
    """The JSON form of a mapping, with its values as the builder makes them."""
    try:
        # The quick way, for what is JSON already. Our encoder would make null of NaN, and base64
        # of bytes.
        return json.dumps(source, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return encoder.encode({str(name): plain(str(name), each) for name, each in source.items()})
