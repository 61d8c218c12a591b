"""Checks of the options of a transaction: id, strings, seconds, integers, times."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from processor.errors import InvalidTransaction
from processor.transaction.ids import canonical_id, new_id
from processor.transaction.values import key_text, plain

_TIME = "write 2026-11-21T06:00:00Z, or pass an aware datetime"


def both_given(field: str, other: str) -> InvalidTransaction:
    """Return the error for two options that exclude each other."""
    return InvalidTransaction(
        field, f"cannot be given together with {other}", hint="give one of them"
    )


def decided_id(given: str | uuid.UUID | None, idempotency_key: str | None) -> str | None:
    """Return the given id or a new one, None if the key decides it. Raises InvalidTransaction."""
    if given is not None and idempotency_key is not None:
        raise both_given("id", "idempotency_key")
    if idempotency_key is not None:
        return None
    return new_id() if given is None else canonical_id("id", given)


def text(field: str, value: str | None) -> str | None:
    """Check a short string, or None. Raises InvalidTransaction."""
    return None if value is None else key_text(field, value)


def seconds(field: str, value: float | None, minimum: float = 0) -> float | None:
    """Check a number of seconds, or None. Raises InvalidTransaction."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidTransaction(field, f"must be a number of seconds, got {type(value).__name__}")
    if not minimum <= value <= 3_155_760_000:
        raise InvalidTransaction(field, f"must be between {minimum:g} and 100 years, in seconds")
    return float(value)


def check_timeout(timeout: float | None, longest: float) -> None:
    """Check that a time limit is at most `longest`. Raises InvalidTransaction."""
    if timeout is not None and timeout > longest:
        raise InvalidTransaction(
            "timeout", f"must be at most {longest:g} seconds (database.longest_timeout)",
            hint="its lane waits as long: divide the work, or raise the setting",
        )  # fmt: skip


def integer(field: str, value: int | None, minimum: int) -> int | None:
    """Check an integer, or None. Raises InvalidTransaction."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidTransaction(field, f"must be an integer of at least {minimum}")
    return value


def flag(field: str, value: bool) -> None:
    """Check that a value is true or false. Raises InvalidTransaction."""
    if value is not True and value is not False:
        raise InvalidTransaction(field, f"must be true or false, got {type(value).__name__}")


def due_text(value: datetime.datetime | str | None) -> str | None:
    """Return a due time as ISO 8601 in UTC, or None. Raises InvalidTransaction."""
    if value is None:
        return None
    try:
        given = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
        in_utc = given.astimezone(datetime.UTC) if given.tzinfo else None
    except (ValueError, AttributeError, OverflowError):
        raise InvalidTransaction("due", "is not a valid time", hint=_TIME) from None
    if in_utc is None:
        raise InvalidTransaction("due", "has no time zone", hint=_TIME)
    return in_utc.isoformat()


def unix_seconds(due: str | None) -> float | None:
    """Return a time made by `due_text` as Unix seconds."""
    return None if due is None else datetime.datetime.fromisoformat(due).timestamp()


def cache_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and values of a cache. Raises InvalidTransaction."""
    if not isinstance(given, Mapping):
        raise InvalidTransaction(
            "cache", f"must be a mapping, got {type(given).__name__}", hint='write {"name": value}'
        )
    return {
        key_text("cache", name): plain(f"cache.{name}", each, 1) for name, each in given.items()
    }
