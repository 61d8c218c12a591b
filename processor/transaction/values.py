"""Plain values of a transaction: what a person may send, checked at the door and made JSON.

JSON has no Decimal, date, interval, bytes or NaN, so these become texts in the form that
PostgreSQL's own input functions read; `render` gives them their column's type again.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from processor.errors import InvalidTransaction

_DEEPEST = 64
_LONGEST_KEY = 512
_LONGEST_NAME = 63
_KEY = f"give a text of 1 to {_LONGEST_KEY} characters"


def plain_mapping(at: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Column names and their values, each checked. Raises InvalidTransaction."""
    if not isinstance(mapping, Mapping):
        raise InvalidTransaction(
            at, f"is a {type(mapping).__name__}", hint='write {"column": value}'
        )
    if not mapping:
        raise InvalidTransaction(at, "is empty", hint="name at least one column")
    return {_column(at, name): plain(f"{at}.{name}", value) for name, value in mapping.items()}


def plain_rows(at: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of equal columns, each value checked. Raises InvalidTransaction."""
    checked = [plain_mapping(f"{at}[{n}]", row) for n, row in enumerate(rows)]
    if not checked:
        raise InvalidTransaction(at, "is empty", hint="give at least one row")
    for number, row in enumerate(checked):
        if row.keys() != checked[0].keys():
            raise InvalidTransaction(f"{at}[{number}]", "has other columns than the first row")
    return checked


def plain(at: str, value: Any, depth: int = 0) -> Any:
    """A value as JSON can carry it. Raises InvalidTransaction, naming the place."""
    kind = type(value)
    if kind is str:
        return _text(at, value)
    if kind is int or value is None or kind is bool:
        return value
    if depth > _DEEPEST:
        raise InvalidTransaction(
            at[:60] + "...", "nested too deeply", hint=f"at most {_DEEPEST} levels"
        )
    if isinstance(value, (list, tuple)):
        return [plain(f"{at}[{n}]", item, depth + 1) for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_name(at, k): plain(f"{at}.{k}", v, depth + 1) for k, v in value.items()}
    return _scalar(at, value)


def _scalar(at: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _infinite(value)
    if isinstance(value, Decimal):
        return value if value.is_finite() else _infinite(value)
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, str):
        return _text(at, str(value))
    if isinstance(value, int):
        return int(value)
    raise InvalidTransaction(
        at, f"a {type(value).__name__} cannot be sent",
        hint="send null, bool, numbers, text, UUID, dates, intervals, bytes, lists or mappings",
    )  # fmt: skip


def _infinite(value: float | Decimal) -> str:
    # A signalling one may not even be compared.
    if value.is_nan() if isinstance(value, Decimal) else math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _text(at: str, value: str) -> str:
    if "\0" in value:
        raise InvalidTransaction(at, "text with a NUL character", hint="PostgreSQL stores none")
    return value


def _name(at: str, name: object) -> str:
    if not isinstance(name, str):
        raise InvalidTransaction(at, f"a {type(name).__name__} as a name", hint="names are texts")
    return _text(at, name)


def _column(at: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidTransaction(at, "has a column without a name", hint="names are texts")
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise InvalidTransaction(f"{at}.{name[:20]}", f"a column name has at most {_LONGEST_NAME} "
                                 "characters and no NUL")  # fmt: skip
    return name


def identifier(at: str, name: object) -> str:
    """A table's name, optionally schema.table. Raises InvalidTransaction."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidTransaction(at, "is not the name of a table", hint="table or schema.table")
    parts = name.split(".")
    if len(parts) > 2 or not all(0 < len(part) <= _LONGEST_NAME for part in parts):
        raise InvalidTransaction(at, "is not a table name", hint="table or schema.table")
    return name


def key_text(at: str, value: object) -> str:
    """A key or another short text that travels with a transaction. Raises InvalidTransaction."""
    if not isinstance(value, str):
        raise InvalidTransaction(at, f"is a {type(value).__name__}", hint=_KEY)
    if not value.strip():
        raise InvalidTransaction(at, "is empty", hint=f"leave it out, or {_KEY}")
    if "\0" in value or len(value) > _LONGEST_KEY:
        raise InvalidTransaction(at, "has a NUL or is too long", hint=_KEY)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidTransaction(at, "has a lone surrogate", hint=_KEY) from None
    return value
