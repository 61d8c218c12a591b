"""A transaction as bytes for the buffer, in the oldest envelope that says all of it (rule 101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction import documents, table_names
from processor.transaction.operations import (
    FIRST_VERSION,
    VERSION,
    Delete,
    Insert,
    JsonForm,
    Operation,
    Statement,
    Update,
    Upsert,
    encoder,
    form_decoder,
    operations_decoder,
    ordered_encoder,
)
from processor.transaction.options import unix_seconds


class Encoded(msgspec.Struct, frozen=True):
    """A checked transaction, ready to be put into the buffer."""

    id: str
    body: bytes
    queue: str
    keys: tuple[str, ...]
    due: float | None
    operations: tuple[Operation, ...] = ()
    cache: dict[str, Any] | None = None
    #: The version of the envelope that its reader must understand.
    version: bytes = FIRST_VERSION
    #: Whether `body` notes an order of keys.
    ordered: bool = False


def encoded(
    transaction_id: str, form: JsonForm, operations: Sequence[Operation],
    cache: dict[str, Any] | None, now: float, limit: int,
) -> Encoded:  # fmt: skip
    """Encode a transaction, whose options are those of `form`. Raises as `Transaction.encode`."""
    if not operations:
        raise InvalidTransaction(
            "operations", "must not be empty", hint="add at least one operation"
        )
    due = now + form.delay if form.delay is not None else unix_seconds(form.due)
    keys = (form.key,) if form.key is not None else tuple(dict.fromkeys(form.keys or ()))
    try:
        body, written, is_new, ordered = _body(transaction_id, form, operations)
    except UnicodeEncodeError:
        raise InvalidTransaction("operations", "text contains a lone surrogate") from None
    except ValueError:
        # Python refuses to format longer integers, since the time grows with the square.
        raise InvalidTransaction(
            "operations", "an integer has more than 4300 digits",
            hint="send it as Decimal or as a string",
        ) from None  # fmt: skip
    if len(body) > limit:
        raise InvalidTransaction(
            "operations",
            f"{len(body)} bytes exceed the limit of {limit} (buffer.transaction_bytes)",
            hint="store large content elsewhere and submit a reference",
        )  # fmt: skip
    version = VERSION if is_new or form.idempotency_key is not None else FIRST_VERSION
    return Encoded(
        transaction_id, body, form.queue or "default", keys, due, written, cache, version,
        ordered,
    )  # fmt: skip


def _body(
    transaction_id: str, form: JsonForm, operations: Sequence[Operation]
) -> tuple[bytes, tuple[Operation, ...], bool, bool]:
    """Return the body, and the operations as they are in it.

    Also return whether `FIRST_VERSION` cannot say one of them, and whether an order is noted.
    """
    written = tuple(operations)
    try:
        raw = encoder.encode(written)
    except TypeError:
        # A `Json`: nothing else that the builder accepts is unknown to the encoder. So documents
        # cost nothing where there are none.
        written = tuple(map(documents.with_texts, written))
        raw = encoder.encode(written)
    braces, is_new = _survey(written)
    # A table name in quotes has them escaped; so may a value.
    is_new = is_new or (b"\\" in raw and any(map(_is_quoted, written)))
    order = documents.order_of(written) if raw.count(b"{") > braces else None
    stored = msgspec.structs.replace(
        form, id=transaction_id, queue=None, operations=msgspec.Raw(raw),
        cache=None if order is None else {"order": order},
    )  # fmt: skip
    return encoder.encode(stored), written, is_new, order is not None


def _survey(operations: Sequence[Operation]) -> tuple[int, bool]:
    """Return how many braces open in the form of operations whose values are no objects.

    Also return whether release 0.1 would refuse or misread one of the operations.
    """
    braces, is_new = 0, False
    for operation in operations:
        if isinstance(operation, Insert):
            braces += 2 if operation.rows is None else 1 + len(operation.rows)
            is_new = is_new or operation.overriding
        elif isinstance(operation, Update):
            braces += 2 + (operation.set is not None) + (operation.add is not None)
        elif isinstance(operation, Upsert):
            braces += 2
            is_new = is_new or operation.overriding or not operation.update
        else:
            braces += 2 if isinstance(operation, Delete) or operation.params else 1
        is_new = is_new or operation.json is not None
    return braces, is_new


def _is_quoted(operation: Operation) -> bool:
    return not isinstance(operation, Statement) and table_names.is_quoted(operation.table)


def as_submitted(body: bytes) -> bytes:
    """Return a body with the keys of its objects in their order, and without what notes it.

    A body that is no transaction stays as it is.
    """
    if b'"cache":' not in body:
        return body
    try:
        form = form_decoder.decode(body)
        operations = operations_decoder.decode(form.operations)
        documents.reorder(operations, (form.cache or {}).get("order"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body
    raw = msgspec.Raw(ordered_encoder.encode(operations))
    return ordered_encoder.encode(msgspec.structs.replace(form, operations=raw, cache=None))
