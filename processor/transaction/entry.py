"""A transaction as it lies in a stream and as the drain works on it: decoded once, at the edge."""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction.ids import canonical_id
from processor.transaction.operations import (
    Delete,
    Insert,
    Operation,
    Update,
    documents,
    operations,
    reason,
)

#: Version of the envelope that this release writes and reads.
VERSION = b"1"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A transaction as the drain works on it: decoded once, never changed."""

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
    #: Nobody knows under which entry id it came (see `notes`).
    delayed: bool = False


_STRANGE = re.compile(r"(unknown field|Invalid (?:enum )?value) (['`]).*?\2(?= - at `\$|$)", re.S)
#: Not the text backslash-u0000, whose backslash is escaped.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000").search


class Unreadable(Exception):
    """The bytes are not a transaction; they go to the dead letters as they are (rule 10)."""


class UnknownVersion(Exception):
    """The envelope is of a later release; it stays in the stream (rule 10)."""


def decode(entry_id: str, version: bytes | None, body: bytes | None, attempt: int = 0) -> Entry:
    """The record of one entry. Raises Unreadable or UnknownVersion."""
    if version is None or body is None:
        raise Unreadable("the fields v and tx are missing")
    if version != VERSION:
        if version.isdigit() and len(version) < 10 and int(version) > int(VERSION):
            raise UnknownVersion(version.decode())
        raise Unreadable("envelope version is not a number of a release")
    if b"\\u0000" in body and _NUL(body):
        raise Unreadable("text with a NUL character, which PostgreSQL does not store")
    try:
        document = documents.decode(body)
        decoded = operations.decode(document.operations)
        _check(decoded)
        keys = (document.key,) if document.key is not None else tuple(document.keys or ())
        if any(not key or "\0" in key for key in keys):
            raise InvalidTransaction("key", "is empty or has a NUL")
        identity = canonical_id("id", document.id)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # The parser quotes what it did not expect, and that can be a value (rule 19).
        raise Unreadable(_STRANGE.sub(r"\1", reason(error))) from None
    return Entry(
        entry_id,
        identity,
        blake2b(document.operations, digest_size=16).hexdigest(),
        decoded,
        keys,
        body,
        document.attempts,
        document.timeout,
        attempt,
        document.trace,
        document.delay is not None or document.due is not None,
    )


def _check(decoded: tuple[Operation, ...]) -> None:
    # Anyone with the right to XADD can write here: what the door would refuse is refused again.
    if not decoded:
        raise InvalidTransaction("operations", "none given")
    for number, operation in enumerate(decoded):
        kind = type(operation)
        if kind is Insert:
            if (operation.values is None) == (operation.rows is None):  # type: ignore[union-attr]
                raise InvalidTransaction(f"operations[{number}]", "needs either values or rows")
            if not (operation.values or (operation.rows and all(operation.rows))):  # type: ignore[union-attr]
                raise InvalidTransaction(f"operations[{number}]", "has no columns")
        elif kind is Update and not operation.set and not operation.add:  # type: ignore[union-attr]
            raise InvalidTransaction(f"operations[{number}]", "update needs set or add")
        if (kind is Update or kind is Delete) and not operation.where:  # type: ignore[union-attr]
            # It would be every row.
            raise InvalidTransaction(f"operations[{number}].where", "is empty")
