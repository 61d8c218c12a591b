"""A transaction as it lies in a stream and as the drain works on it: decoded once, at the edge."""

from __future__ import annotations

import hashlib

import msgspec

from processor.errors import InvalidTransaction
from processor.identity import canonical_id
from processor.operation import Document, Insert, Operation, Update, documents, operations, reason

#: Version of the envelope that this release writes and reads.
VERSION = b"1"


class Entry(msgspec.Struct, frozen=True):
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
        _check_stored(document, decoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreadable(reason(error)) from None
    keys = (document.key,) if document.key is not None else tuple(document.keys or ())
    return Entry(
        entry_id,
        canonical_id("id", document.id),
        hashlib.blake2b(document.operations, digest_size=16).hexdigest(),
        decoded,
        keys,
        body,
        document.attempts,
        document.timeout,
        attempt,
        document.trace,
    )


def _check_stored(document: Document, decoded: tuple[Operation, ...]) -> None:
    # Anyone with the right to XADD can write here: what the door would refuse is refused again.
    canonical_id("id", document.id)
    if not decoded:
        raise InvalidTransaction("operations", "none given")
    for number, operation in enumerate(decoded):
        if isinstance(operation, Insert) and (operation.values is None) == (operation.rows is None):
            raise InvalidTransaction(f"operations[{number}]", "insert needs either values or rows")
        if isinstance(operation, Update) and not operation.set and not operation.add:
            raise InvalidTransaction(f"operations[{number}]", "update needs set or add")
