"""A transaction as it lies in a stream and as the drain works on it: decoded once, at the edge."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from processor.errors import InvalidTransaction
from processor.identity import canonical_id
from processor.operation import Insert, Operation, Update, documents, operations, reason

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


class Unreadable(Exception):
    """The bytes are not a transaction; they go to the dead letters as they are (rule 10)."""


class UnknownVersion(Exception):
    """The envelope is of a later release; it stays in the stream (rule 10)."""


def decode(entry_id: str, version: bytes | None, body: bytes | None, attempt: int = 0) -> Entry:
    """The record of one entry. Raises Unreadable or UnknownVersion."""
    if version is None or body is None:
        raise Unreadable("the fields v and tx are missing")
    if version != VERSION:
        if version.isdigit() and int(version) > int(VERSION):
            raise UnknownVersion(version.decode())
        raise Unreadable("envelope version is not a number of a release")
    try:
        document = documents.decode(body)
        decoded = operations.decode(document.operations)
        _check(decoded)
        identity = canonical_id("id", document.id)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreadable(reason(error)) from None
    return Entry(
        entry_id,
        identity,
        blake2b(document.operations, digest_size=16).hexdigest(),
        decoded,
        (document.key,) if document.key is not None else tuple(document.keys or ()),
        body,
        document.attempts,
        document.timeout,
        attempt,
        document.trace,
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
        elif kind is Update and not operation.set and not operation.add:  # type: ignore[union-attr]
            raise InvalidTransaction(f"operations[{number}]", "update needs set or add")
