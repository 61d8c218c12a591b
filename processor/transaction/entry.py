"""A transaction in a stream, as the drain works on it: decoded once, when it is read."""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction.documents import reorder, restore
from processor.transaction.ids import canonical_id, derived_id
from processor.transaction.operations import (
    VERSION,
    Delete,
    Insert,
    Operation,
    Update,
    decode_problem,
    form_decoder,
    operations_decoder,
)
from processor.transaction.values import Json


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A decoded transaction; never changed."""

    entry_id: str
    id: str
    hash: str
    operations: tuple[Operation, ...]
    keys: tuple[str, ...]
    body: bytes
    attempts: int | None = None
    timeout: float | None = None
    attempt: int = 0
    trace: str | None = None
    #: It had a due time, so its receipt does not know its entry id (see `commit_notes`).
    delayed: bool = False
    #: The version of the envelope of `body`.
    version: int = 1
    #: The id that release 0.1 gives a transaction with the same idempotency key (rule 96).
    former: str | None = None


_QUOTED = re.compile(r"(unknown field|Invalid (?:enum )?value) (['`]).*?\2(?= - at `\$|$)", re.S)
#: Does not match an escaped backslash followed by u0000.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search


class Unreadable(Exception):
    """The bytes are not a transaction; the dead letter stores them unchanged (rule 10)."""


class UnknownVersion(Exception):
    """The envelope belongs to a later release; the entry stays in the stream (rule 10)."""


def decode(entry_id: str, version: bytes | None, body: bytes | None, attempt: int = 0) -> Entry:
    """Decode one entry. Raises Unreadable and UnknownVersion."""
    if version is None or body is None:
        raise Unreadable("the fields v and tx are missing")
    number = 1 if version == b"1" else _version(version)
    if b"\\u0000" in body and _NUL(body):
        raise Unreadable("text contains NUL (\\0), which PostgreSQL cannot store")
    try:
        form = form_decoder.decode(body)
        decoded = operations_decoder.decode(form.operations)
        if form.cache is not None and "order" in form.cache:
            reorder(decoded, form.cache["order"])
        _check(decoded)
        keys = (form.key,) if form.key is not None else tuple(form.keys or ())
        if any(not key or "\0" in key for key in keys):
            raise InvalidTransaction("key", "is empty or contains NUL")
        identity = canonical_id("id", form.id)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # The decoder quotes what it did not expect, which can be a value (rule 19).
        raise Unreadable(_QUOTED.sub(r"\1", decode_problem(error))) from None
    return Entry(
        entry_id,
        identity,
        blake2b(form.operations, digest_size=16).hexdigest(),
        decoded,
        keys,
        body,
        form.attempts,
        form.timeout,
        attempt,
        form.trace,
        form.delay is not None or form.due is not None,
        number,
        None if form.idempotency_key is None else _former(form.idempotency_key, identity),
    )


def former_id_in(body: bytes) -> str | None:
    """Return the id that release 0.1 gives the transaction of a body; None without a key."""
    try:
        form = form_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if form.idempotency_key is None else _former(form.idempotency_key, form.id)


def _former(idempotency_key: str, identity: str | None) -> str | None:
    former = derived_id(idempotency_key)
    # Anyone who may XADD can write a body whose id is the former one already.
    return None if former == identity else former


def is_later(version: bytes | None) -> bool:
    """Return whether an envelope version is one of a later release (rule 10)."""
    return version is not None and version.isdigit() and int(version[:10]) > int(VERSION)


def _version(text: bytes) -> int:
    number = int(text) if text.isdigit() and len(text) < 10 else 0
    if number > int(VERSION):
        raise UnknownVersion(text.decode())
    if number < 1:
        raise Unreadable("invalid envelope version")
    return number


def _check(decoded: tuple[Operation, ...]) -> None:
    # Anyone who may XADD can write entries: what the builder refuses must be refused here, too.
    if not decoded:
        raise InvalidTransaction("operations", "must not be empty")
    for number, operation in enumerate(decoded):
        kind = type(operation)
        if operation.json is not None:
            # PostgreSQL judges the text.
            restore(f"operations[{number}].json", operation, Json.read)
        if kind is Insert:
            if (operation.values is None) == (operation.rows is None):  # type: ignore[union-attr]
                raise InvalidTransaction(f"operations[{number}]", "needs either values or rows")
            if not (operation.values or (operation.rows and all(operation.rows))):  # type: ignore[union-attr]
                raise InvalidTransaction(f"operations[{number}]", "has no columns")
        elif kind is Update and not operation.set and not operation.add:  # type: ignore[union-attr]
            raise InvalidTransaction(f"operations[{number}]", "update needs set or add")
        if (kind is Update or kind is Delete) and not operation.where:  # type: ignore[union-attr]
            # It would match every row.
            raise InvalidTransaction(f"operations[{number}].where", "is empty")
