"""The ids of transactions: made by the producer, sortable by time, or derived from a key."""

from __future__ import annotations

import os
import re
import time
import uuid

from processor.errors import InvalidTransaction

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_KEYS = uuid.UUID("6e6f7374-6f72-5d61-8e64-666f72776172")


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562): milliseconds, 12 bits of the fraction, 62 random bits.

    The random bits come from the operating system at each call, so a forked child never repeats its
    parent's ids.
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    low = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    text = f"{milliseconds:012x}7{fraction:03x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_of_key(namespace: str, idempotency_key: str) -> str:
    """Return the id of an idempotency key in a namespace; the same in every process (rule 96)."""
    return id_in(namespace, derived_id(idempotency_key))


def derived_id(text: str) -> str:
    """Return the id derived from a text, the same in every process and release.

    Release 0.1 gives it to an idempotency key, in every namespace.
    """
    return str(uuid.uuid5(_KEYS, text))


def id_in(namespace: str, former: str) -> str:
    """Return the id of a key in a namespace, derived from its id in release 0.1."""
    return str(uuid.uuid5(uuid.UUID(former), namespace))


def canonical_id(field: str, value: object) -> str:
    """Return an id in the form that PostgreSQL prints. Raises InvalidTransaction."""
    if isinstance(value, str) and _CANONICAL(value):
        return value
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value)))
    except ValueError:
        raise InvalidTransaction(
            field, "is not a UUID",
            hint="use processor.new_id(), or idempotency_key for any other string",
        ) from None  # fmt: skip


def is_id(text: str) -> bool:
    """Whether a text is the id of a transaction, and so may be used in SQL."""
    try:
        return canonical_id("id", text) == text
    except ValueError:
        return False
