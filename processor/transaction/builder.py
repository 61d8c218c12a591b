"""The builder of transactions, which checks them before they are submitted.

Values are checked when they are added, the whole transaction when it is encoded; errors name the
field. The records of operations are in `operations`, the bytes in `encoding`; what the drain
decodes is in `entry`.
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
from processor.transaction.decode_errors import invalid_transaction
from processor.transaction.documents import restore
from processor.transaction.encoding import Encoded, encoded
from processor.transaction.ids import id_of_key
from processor.transaction.operations import (
    Delete,
    Insert,
    JsonForm,
    Operation,
    Statement,
    Update,
    Upsert,
    form_decoder,
    operations_decoder,
    ordered_encoder,
)
from processor.transaction.options import (
    both_given,
    cache_values,
    check_timeout,
    decided_id,
    due_text,
    flag,
    integer,
    seconds,
    text,
)
from processor.transaction.table_names import TableName
from processor.transaction.values import (
    Json,
    identifier,
    key_text,
    plain,
    plain_mapping,
    plain_rows,
)

_FORMS = "give a Transaction, or write one JSON object"


class Transaction:
    """Operations that are committed together, in the order in which they are added.

    The id is generated here, or comes from `id` or from `idempotency_key` and the namespace of the
    settings, so submitting the same object twice is one effect. Methods add an operation and return
    the transaction itself::

        with Transaction(key="order-42") as t:
            t.insert("orders", {"id": order, "amount": 25})
            t.update("account", add={"balance": 25}, where={"id": 7}, expect=1)

    `with` submits at the end of the block, and submits nothing if the block raises an exception.

    Parameters: `queue` (default "default"); `key` or `keys` (strings; transactions that share one
    commit in accept order); `delay` (seconds) or `due` (an aware datetime, or ISO 8601 with a time
    zone); `attempts` (failed attempts after which it is dead); `timeout` (limit for each of its
    statements, seconds); `batch` and `trace` (strings that are stored with it); `cache` (names and
    values that `processor.cached` returns until every server has the effect). Raises
    InvalidTransaction, naming the field.

    A table is named as "table" or "schema.table", and if its name has a dot as ("schema", "a.b").
    `Json` makes a value a JSON document.
    """

    # Set by `producer.submit`, a package above this one: `with` must be able to submit.
    submitter: ClassVar[Callable[[Transaction], Any] | None] = None
    # Set there as well: the id of an idempotency key belongs to the namespace (rule 96).
    namespace: ClassVar[Callable[[], str]] = staticmethod(lambda: "processor")

    __slots__ = ("_form", "_id", "_operations", "cache", "receipt")

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
        self._id = decided_id(id, idempotency_key)
        self.receipt: Any = None
        self._operations: list[Operation] = []
        self.cache = None if cache is None else cache_values(cache)
        if isinstance(keys, str):
            raise InvalidTransaction(
                "keys", "must be a list of strings, got str", hint='use key="..." for one key'
            )
        self._form = JsonForm(
            idempotency_key=text("idempotency_key", idempotency_key),
            queue=text("queue", queue),
            key=text("key", key),
            keys=None if keys is None else [key_text(f"keys[{n}]", k) for n, k in enumerate(keys)],
            delay=seconds("delay", delay),
            due=due_text(due),
            attempts=integer("attempts", attempts, 1),
            timeout=seconds("timeout", timeout, 0.001),
            batch=text("batch", batch),
            trace=text("trace", trace),
        )
        if key is not None and keys is not None:
            raise both_given("keys", "key")
        if delay is not None and due is not None:
            raise both_given("due", "delay")

    def insert(
        self,
        table: TableName,
        values: Mapping[str, Any] | None = None,
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        overriding: bool = False,
    ) -> Self:
        """Insert one row (`values`), or several with the same columns (`rows`).

        `overriding` (OVERRIDING SYSTEM VALUE) permits values for columns that are GENERATED ALWAYS
        AS IDENTITY.
        """
        path = self._next_path()
        if (values is None) == (rows is None):
            raise InvalidTransaction(path, "insert needs either values or rows")
        checked = None if values is None else plain_mapping(f"{path}.values", values)
        many = None if rows is None else plain_rows(f"{path}.rows", rows)
        flag(f"{path}.overriding", overriding)
        return self._add(Insert(identifier(f"{path}.table", table), checked, many, overriding))

    def upsert(
        self,
        table: TableName,
        values: Mapping[str, Any],
        conflict: Sequence[str],
        *,
        update: bool = True,
        overriding: bool = False,
    ) -> Self:
        """Insert a row, or update it if a row with the same `conflict` columns exists.

        The columns are those of a unique index, which may be a partial one. With `update=False` a
        row that exists stays as it is (DO NOTHING). `overriding` as in `insert`.
        """
        path = self._next_path()
        checked = plain_mapping(f"{path}.values", values)
        if isinstance(conflict, str) or not conflict:
            raise InvalidTransaction(
                f"{path}.conflict", "must be a list of columns", hint='such as ["id"]'
            )
        for column in conflict:
            if column not in checked:
                raise InvalidTransaction(f"{path}.conflict", f"column {column!r} is not in values")
        flag(f"{path}.update", update)
        flag(f"{path}.overriding", overriding)
        name = identifier(f"{path}.table", table)
        return self._add(Upsert(name, checked, list(conflict), update, overriding))

    def update(
        self,
        table: TableName,
        set: Mapping[str, Any] | None = None,
        *,
        add: Mapping[str, Any] | None = None,
        where: Mapping[str, Any],
        expect: int | None = None,
    ) -> Self:
        """Set columns, or add to them, in the rows whose columns equal `where`.

        `expect` is the number of rows that must match; any other number makes the transaction fail.
        """
        path = self._next_path()
        if not set and not add:
            raise InvalidTransaction(path, "update needs set or add")
        both = {*(set or ())} & {*(add or ())}
        if both:
            raise InvalidTransaction(f"{path}.add", f"column {min(both)!r} is also in set")
        return self._add(
            Update(
                identifier(f"{path}.table", table),
                plain_mapping(f"{path}.where", where),
                plain_mapping(f"{path}.set", set) if set else None,
                plain_mapping(f"{path}.add", add) if add else None,
                integer(f"{path}.expect", expect, 0),
            )
        )

    def delete(
        self, table: TableName, where: Mapping[str, Any], *, expect: int | None = None
    ) -> Self:
        """Delete the rows whose columns equal `where`; `expect` as in `update`."""
        path = self._next_path()
        checked = plain_mapping(f"{path}.where", where)
        count = integer(f"{path}.expect", expect, 0)
        return self._add(Delete(identifier(f"{path}.table", table), checked, count))

    def statement(self, name: str, params: Mapping[str, Any] | None = None) -> Self:
        """Run the statement that is registered under `name`."""
        path = self._next_path()
        if not isinstance(name, str) or not name or "\0" in name:
            raise InvalidTransaction(f"{path}.name", "must be the name of a registered statement")
        checked = plain_mapping(f"{path}.params", params) if params else {}
        return self._add(Statement(name, checked))

    @property
    def id(self) -> str:
        """Its id. That of an idempotency key needs the settings: raises ConfigError without."""
        if self._id is not None:
            return self._id
        return id_of_key(Transaction.namespace(), self._form.idempotency_key or "")

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations added so far."""
        return tuple(self._operations)

    @classmethod
    def parse(
        cls, source: str | bytes | Mapping[str, Any], *, stored: str | None = None
    ) -> Transaction:
        """Make a transaction from its JSON form (text, bytes or a mapping).

        `stored` is the id of the transaction if its form comes from the buffer, where it has both
        its id and its idempotency key. Raises InvalidTransaction, naming the field.
        """
        raw = _json(source) if isinstance(source, Mapping) else source
        try:
            form = form_decoder.decode(raw)
        except TypeError:
            hint = "submit_many takes several" if isinstance(source, (list, tuple)) else _FORMS
            raise InvalidTransaction(
                "transaction", f"must be one transaction, got {type(source).__name__}", hint=hint
            ) from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise invalid_transaction(error) from None
        try:
            operations = operations_decoder.decode(form.operations)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise invalid_transaction(error, "operations") from None
        options = {name: getattr(form, name) for name in _OPTIONS}
        if stored is not None and form.id == stored:
            options["idempotency_key"] = None
        made = cls(id=form.id, **options)
        for operation in operations:
            add_checked(made, operation)
        return made

    @property
    def is_delayed(self) -> bool:
        """Whether its due time is counted from the time of its submit."""
        return self._form.delay is not None

    def encode(self, now: float, limit: int, longest: float = float("inf")) -> Encoded:
        """Check the transaction and encode it for the buffer.

        `now` (the start of a delay) is in Unix seconds, `limit` in bytes, `longest` the longest
        `timeout`. Raises InvalidTransaction if there are no operations or a limit is exceeded.
        """
        check_timeout(self._form.timeout, longest)
        return encoded(self.id, self._form, self._operations, self.cache, now, limit)

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
                raise InvalidTransaction(
                    "transaction", "cannot be submitted: processor.submit is not loaded"
                )
            self.receipt = Transaction.submitter(self)

    def __repr__(self) -> str:
        kinds = ", ".join(type(o).__name__.lower() for o in self._operations)
        return f"<Transaction {self._id or 'with an idempotency key'}: {kinds or 'empty'}>"

    def _next_path(self) -> str:
        return f"operations[{len(self._operations)}]"

    def _add(self, operation: Operation) -> Self:
        self._operations.append(operation)
        return self


_OPTIONS = ("idempotency_key", "queue", "key", "keys", "delay", "due", "attempts", "timeout",
            "batch", "trace", "cache")  # fmt: skip


def add_checked(transaction: Transaction, op: Operation) -> None:
    """Add a decoded operation by the methods of the builder, so that both forms are checked alike.

    Raises InvalidTransaction.
    """
    if op.json is not None:
        restore(f"{transaction._next_path()}.json", op, Json.of_text)
    if isinstance(op, Insert):
        transaction.insert(op.table, op.values, rows=op.rows, overriding=op.overriding)
    elif isinstance(op, Upsert):
        transaction.upsert(
            op.table, op.values, op.conflict, update=op.update, overriding=op.overriding
        )
    elif isinstance(op, Update):
        transaction.update(op.table, op.set, add=op.add, where=op.where, expect=op.expect)
    elif isinstance(op, Delete):
        transaction.delete(op.table, op.where, expect=op.expect)
    else:
        transaction.statement(op.name, op.params)


def _json(source: Mapping[str, Any]) -> str | bytes:
    """Encode a mapping as JSON, with its values as the builder encodes them."""
    try:
        # The fast path, for values that are JSON already. msgspec would encode NaN as null, and
        # bytes as base64.
        return json.dumps(source, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        made = {str(name): plain(str(name), each) for name, each in source.items()}
        return ordered_encoder.encode(made)
