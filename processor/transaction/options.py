"""The options of a transaction, each checked where it is given: id, texts, seconds, times."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from processor.errors import InvalidTransaction
from processor.transaction.ids import canonical_id, id_of_key, new_id
from processor.transaction.values import key_text, plain

_MOMENT = "write 2026-11-21T06:00:00Z, or an aware datetime"


def decided_id(given: str | uuid.UUID | None, idempotency_key: str | None) -> str:
    """The id that was given or that the key decides; else a new one. Raises InvalidTransaction."""
    if given is not None and idempotency_key is not None:
        raise InvalidTransaction(
            "id", "given together with idempotency_key", hint="give one of them"
        )
    if idempotency_key is not None:
        return id_of_key(key_text("idempotency_key", idempotency_key))
    return new_id() if given is None else canonical_id("id", given)


def text(field: str, value: str | None) -> str | None:
    """A short text, if one is given. Raises InvalidTransaction."""
    return None if value is None else key_text(field, value)


def seconds(field: str, value: float | None, least: float = 0) -> float | None:
    """Seconds, if any are given. Raises InvalidTransaction."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidTransaction(field, f"is a {type(value).__name__}", hint="give seconds")
    if not least <= value <= 3_155_760_000:
        raise InvalidTransaction(field, f"must be between {least:g} and 100 years, in seconds")
    return float(value)


def whole(field: str, value: int | None, least: int) -> int | None:
    """A whole number, if one is given. Raises InvalidTransaction."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidTransaction(field, f"must be a whole number of at least {least}")
    return value


def due_text(value: datetime.datetime | str | None) -> str | None:
    """When it is due, as ISO 8601 in UTC, if it is given. Raises InvalidTransaction."""
    if value is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
        there = moment.astimezone(datetime.UTC) if moment.tzinfo else None
    except (ValueError, AttributeError, OverflowError):
        raise InvalidTransaction("due", "not a date and time", hint=_MOMENT) from None
    if there is None:
        raise InvalidTransaction("due", "has no time zone", hint=_MOMENT)
    return there.isoformat()


def instant(due: str | None) -> float | None:
    """A text made by `due_text` as Unix seconds."""
    return None if due is None else datetime.datetime.fromisoformat(due).timestamp()


def cache_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Names and the values to be kept under them. Raises InvalidTransaction."""
    if not isinstance(given, Mapping):
        raise InvalidTransaction("cache", "is no mapping", hint='write {"name": value}')
    return {key_text("cache", name): plain(f"cache.{name}", each) for name, each in given.items()}
