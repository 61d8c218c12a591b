"""Checks of the values and names in a transaction, and the form of values in JSON; `Json`.

JSON has no Decimal, date, interval, bytes or NaN. These become strings that PostgreSQL's input
functions accept; `sql.renderer` restores the type of their column.
"""

from __future__ import annotations

import datetime
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Self

import msgspec

from processor.errors import InvalidTransaction
from processor.transaction import table_names

_MAX_DEPTH = 64
_MAX_KEY = 512
_MAX_NAME = 63
_TABLE = 'write table or schema.table; a name with a dot as schema."a.b" or ("schema", "a.b")'
_KEY = f"give 1 to {_MAX_KEY} characters"


def plain_mapping(field: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Check column names and their values. Raises InvalidTransaction."""
    if not isinstance(mapping, Mapping):
        raise InvalidTransaction(
            field, f"must be a mapping, got {type(mapping).__name__}",
            hint='write {"column": value}',
        )  # fmt: skip
    if not mapping:
        raise InvalidTransaction(field, "is empty", hint="name at least one column")
    return {
        _column(field, name): plain(f"{field}.{name}", value) for name, value in mapping.items()
    }


def plain_rows(field: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check rows, which must all have the same columns. Raises InvalidTransaction."""
    checked = [plain_mapping(f"{field}[{n}]", row) for n, row in enumerate(rows)]
    if not checked:
        raise InvalidTransaction(field, "is empty", hint="give at least one row")
    for number, row in enumerate(checked):
        if row.keys() != checked[0].keys():
            raise InvalidTransaction(
                f"{field}[{number}]", "its columns differ from those of the first row"
            )
    return checked


def plain(field: str, value: Any, depth: int = 0) -> Any:
    """Return a value in its JSON form. Raises InvalidTransaction, naming the field."""
    kind = type(value)
    if kind is str:
        return _text(field, value)
    if kind is int or value is None or kind is bool:
        return value
    if depth > _MAX_DEPTH:
        raise InvalidTransaction(
            field[:60] + "...", "nested too deeply", hint=f"use at most {_MAX_DEPTH} levels"
        )
    if isinstance(value, (list, tuple)):
        return [plain(f"{field}[{n}]", item, depth + 1) for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_name(field, k): plain(f"{field}.{k}", v, depth + 1) for k, v in value.items()}
    if kind is Json:
        if depth:
            raise InvalidTransaction(
                field, "a Json stands inside another value",
                hint="give the value of a column or parameter as one Json",
            )  # fmt: skip
        return value
    return _scalar(field, value)


def _scalar(field: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _infinite(value)
    if isinstance(value, Decimal):
        return value if value.is_finite() else _infinite(value)
    if isinstance(value, datetime.timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        if value != value:  # pandas.NaT, which is a datetime without a date.
            raise InvalidTransaction(field, "is NaT, not a time", hint="use None for null")
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, str):
        return _text(field, own_text(value))
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "item") and hasattr(value, "dtype"):
        raise InvalidTransaction(field, f"unsupported type {type(value).__name__} of numpy",
                                 hint="give the value of its .item() or .tolist()")
    raise InvalidTransaction(
        field, f"unsupported type {type(value).__name__}",
        hint="use null, bool, numbers, text, UUID, dates, intervals, bytes, lists or mappings",
    )  # fmt: skip


def _infinite(value: float | Decimal) -> str:
    # Comparing a signaling NaN raises an exception.
    if value.is_nan() if isinstance(value, Decimal) else math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _text(field: str, value: str) -> str:
    if "\0" in value:
        raise InvalidTransaction(field, "text contains NUL (\\0), which PostgreSQL cannot store")
    return value


def _name(field: str, name: object) -> str:
    if not isinstance(name, str):
        raise InvalidTransaction(field, f"a name must be a string, got {type(name).__name__}")
    return _text(field, own_text(name))


def _column(field: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidTransaction(field, "a column name must be a non-empty string")
    if len(name) > _MAX_NAME or "\0" in name:
        raise InvalidTransaction(f"{field}.{name[:20]}", f"a column name must have at most "
                                 f"{_MAX_NAME} characters and no NUL")  # fmt: skip
    return own_text(name)


def identifier(field: str, name: object) -> str:
    """Check the name of a table: a text, or schema and table. Raises InvalidTransaction."""
    found = None
    if isinstance(name, str):
        found = _table_name(own_text(name))
    elif isinstance(name, (tuple, list)) and all(isinstance(part, str) for part in name):
        found = _joined([own_text(part) for part in name])
    if found is None:
        raise InvalidTransaction(field, "is not a table name", hint=_TABLE)
    return found


@lru_cache(maxsize=1000)
def _table_name(name: str) -> str | None:
    return _joined(table_names.parts(name))


def _joined(parts: Sequence[str]) -> str | None:
    valid = 0 < len(parts) < 3 and all(0 < len(p) <= _MAX_NAME and "\0" not in p for p in parts)
    return table_names.joined(parts) if valid else None


def key_text(field: str, value: object) -> str:
    """Check a key or another short string of a transaction. Raises InvalidTransaction."""
    if not isinstance(value, str):
        raise InvalidTransaction(field, f"must be a string, got {type(value).__name__}", hint=_KEY)
    if not value.strip():
        raise InvalidTransaction(field, "is empty", hint=f"omit it, or {_KEY}")
    if "\0" in value or len(value) > _MAX_KEY:
        raise InvalidTransaction(field, "contains NUL or is too long", hint=_KEY)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidTransaction(field, "contains a lone surrogate", hint=_KEY) from None
    return own_text(value)


def own_text(value: str) -> str:
    """Return the text itself: a member of a (str, Enum) class is printed as its name."""
    return value if type(value) is str else str.__str__(value)


class Json:
    """A JSON document for a `json` or `jsonb` column or a parameter, whatever value it is made of.

    `Json(None)` is the JSON value null, while None alone is the NULL of SQL. A `json` column keeps
    the keys of objects in their order; `Json.of_text` keeps a JSON text to the letter.
    """

    __slots__ = ("text",)

    def __init__(self, value: Any) -> None:
        """Make a document of a value. Raises InvalidTransaction."""
        checked = plain("json", value, 1)
        try:
            self.text = json_text(checked)
        except (UnicodeEncodeError, ValueError):
            raise InvalidTransaction(
                "json", "contains a lone surrogate, or an integer of more than 4300 digits"
            ) from None

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Make a document of JSON text, which a `json` column stores as it is.

        Raises InvalidTransaction.
        """
        try:
            if not isinstance(text, str):
                raise TypeError
            json.loads(text, parse_constant=_no_constant)
            text.encode()
        except (TypeError, ValueError, RecursionError):
            raise InvalidTransaction("json", "is not the text of a JSON document") from None
        return cls.read(_text("json", own_text(text)))

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the document of a text that was checked, or that PostgreSQL will judge."""
        made = cls.__new__(cls)
        made.text = text
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Json) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Json of {len(self.text)} characters>"


_encoder = msgspec.json.Encoder(decimal_format="number")


def json_text(value: Any) -> str:
    """Return a checked value as JSON, with decimals as numbers; a document as it was given."""
    return value.text if type(value) is Json else _encoder.encode(value).decode()


def _no_constant(_: str) -> None:
    raise ValueError  # NaN and Infinity, which are no JSON.
