"""The values of a transaction as the driver would return them after they were written.

Simple conversions are made here, exactly as PostgreSQL and the driver make them. For others
`read_as` returns a `Cast`, which the server has to make. Where neither can tell, `Undecided` is
raised.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from processor.sql.catalog import Column
from processor.sql.column_types import (
    BOOL,
    BPCHAR,
    DATE,
    FLOAT4,
    FLOAT8,
    INTERVAL,
    JSON,
    JSONB,
    NUMBERS,
    NUMERIC,
    TEXT,
    TIMES,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    VARCHAR,
    WHOLE,
    Unfit,
    Writer,
    no_addition,
    out_of_range,
    writer,
)


class Undecided(Exception):
    """Only PostgreSQL can tell the result."""


class JsonNull:
    """The null of JSON as a value of a column: it is read as None, but it is not NULL."""


JSON_NULL = JsonNull()


class Cast(NamedTuple):
    """A literal that the server has to convert."""

    type: str
    text: str


class Sum(NamedTuple):
    """An addition that the server has to make: old + added, converted to the column's type."""

    type: str
    old: str
    added: Cast


#: Sums of decimals are exact; PostgreSQL stores up to 131072 digits before the decimal point.
_EXACT = Context(prec=200_000, Emin=-999_999, Emax=999_999, traps=[])
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,30}\s*").fullmatch
_DECIMAL = re.compile(
    r"\s*[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?\s*"
).fullmatch
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}").fullmatch
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})?"
).fullmatch
#: Words that mean another time whenever they are converted.
_RELATIVE = re.compile(r"now|today|tomorrow|yesterday", re.I).search
_SPECIAL = {"nan": float("nan"), "infinity": float("inf"), "-infinity": float("-inf")}
_NOT_NUMBER = "NaN"
_FULL_RANGE = 0x7FFF

#: The server has to make this conversion.
_UNKNOWN = object()


@lru_cache(maxsize=1000)
def writer_of(base: int, modifier: int, element: int) -> Writer:
    """Return the function that writes values of a type as text; made once for each type."""
    return writer(base, modifier, element)


def read_as(column: Column, value: Any) -> Any:
    """Return a value as it is read from a column, or a Cast. Raises Unfit and Undecided."""
    if value is None:
        return None
    return _read(column, value, writer_of(column.base, column.modifier, column.element)(value))


def compared_with(column: Column, value: Any) -> Any:
    """Return a value as it is compared with a column, whatever the column's length is.

    Raises Unfit and Undecided.
    """
    if value is None:
        return None
    text = writer_of(column.base, column.modifier, column.element)(value)
    return _read(_unsized(column), value, text)


@lru_cache(maxsize=1000)
def _unsized(column: Column) -> Column:
    return replace(column, modifier=-1, domain="")


def _read(column: Column, value: Any, text: str) -> Any:
    convert = None if column.domain or column.element else _CONVERSIONS.get(column.base)
    if convert is not None:
        found = convert(column, value, text)
        if found is not _UNKNOWN:
            return found
    if column.base in TIMES and _RELATIVE(text):
        raise Undecided
    if _cast_skips_limits(column):
        raise Undecided
    if column.domain and column.base in (VARCHAR, BPCHAR) and column.modifier >= 4:
        _cut(text, column.modifier - 4)  # A cast to the domain would cut the text silently.
    return Cast(column.domain or column.type, text)


def _cast_skips_limits(column: Column) -> bool:
    """Whether the column's length or range changes or refuses values that a cast accepts."""
    if column.modifier < 0:
        return False
    if column.element or column.base not in (*TIMES, *NUMBERS, VARCHAR, BPCHAR):
        return True
    return column.base == INTERVAL and (column.modifier >> 16) & _FULL_RANGE != _FULL_RANGE


def _whole(column: Column, _value: Any, text: str) -> Any:
    return _in_range(column, int(text)) if _INTEGER(text) else _UNKNOWN


def _in_range(column: Column, number: int) -> int:
    if not -WHOLE[column.base] <= number < WHOLE[column.base]:
        raise out_of_range()
    return number


def _numeric(column: Column, _value: Any, text: str) -> Any:
    return _sized(column, Decimal(text.strip())) if _DECIMAL(text) else _UNKNOWN


def _sized(column: Column, number: Decimal) -> Decimal:
    """Return a decimal with the scale of the column. Raises Unfit."""
    if not number.is_finite():
        if column.modifier >= 4 and not number.is_nan():
            raise out_of_range()
        return number
    number = number if number else abs(number)  # PostgreSQL has no negative zero.
    exponent = number.as_tuple().exponent
    if column.modifier < 4:
        # PostgreSQL stores no exponents: 1E+3 is 1000.
        whole = isinstance(exponent, int) and exponent > 0
        return number.quantize(Decimal(1), context=_EXACT) if whole else number
    precision = ((column.modifier - 4) >> 16) & 0xFFFF
    scale = (((column.modifier - 4) & 0x7FF) ^ 1024) - 1024
    if number and number.adjusted() >= precision - scale:
        raise out_of_range()
    return number.quantize(Decimal(1).scaleb(-max(scale, 0)), context=_EXACT)


def _float(_column: Column, _value: Any, text: str) -> Any:
    special = _SPECIAL.get(text.strip().lower())
    if special is not None:
        return special
    if not _DECIMAL(text):
        return _UNKNOWN
    number = float(text)
    if number in (float("inf"), float("-inf")) or (not number and Decimal(text.strip())):
        raise out_of_range()
    return number


def _text(_column: Column, _value: Any, text: str) -> Any:
    return text


def _varying(column: Column, _value: Any, text: str) -> Any:
    return text if column.modifier < 4 else _cut(text, column.modifier - 4)


def _padded(column: Column, _value: Any, text: str) -> Any:
    if column.modifier < 4:
        return text
    return _cut(text, column.modifier - 4).ljust(column.modifier - 4)


def _cut(text: str, length: int) -> str:
    if text[length:].strip(" "):
        raise Unfit("22001", "the text is longer than the column")
    return text[:length]


def _bool(_column: Column, value: Any, _text: str) -> Any:
    return value if isinstance(value, bool) else _UNKNOWN


def _uuid(_column: Column, _value: Any, text: str) -> Any:
    return text.lower() if _UUID(text) else _UNKNOWN


def _json(_column: Column, _value: Any, text: str) -> Any:
    found = json.loads(text)
    return JSON_NULL if found is None else found


def _date(_column: Column, _value: Any, text: str) -> Any:
    return _parsed(datetime.date.fromisoformat, text) if _DATE(text) else _UNKNOWN


def _timestamp(_column: Column, _value: Any, text: str) -> Any:
    form = _TIMESTAMP(text)
    return _parsed(datetime.datetime.fromisoformat, text) if form and not form[1] else _UNKNOWN


def _timestamptz(_column: Column, _value: Any, text: str) -> Any:
    form = _TIMESTAMP(text)
    if not form or not form[1]:
        return _UNKNOWN
    return _parsed(lambda t: datetime.datetime.fromisoformat(t).astimezone(datetime.UTC), text)


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, OverflowError):
        return _UNKNOWN


_CONVERSIONS: dict[int, Callable[[Column, Any, str], Any]] = {
    **dict.fromkeys(WHOLE, _whole), NUMERIC: _numeric, FLOAT8: _float, TEXT: _text,
    VARCHAR: _varying, BPCHAR: _padded, BOOL: _bool, UUID: _uuid, JSON: _json,
    JSONB: _json, DATE: _date, TIMESTAMP: _timestamp, TIMESTAMPTZ: _timestamptz,
}  # fmt: skip


def same_form(column: Column, value: Any) -> Any:
    """Return a value in a form in which PostgreSQL's equal values are equal in Python, too."""
    if isinstance(value, memoryview):
        return bytes(value)
    if column.base == BPCHAR and isinstance(value, str):
        return value.rstrip(" ")
    # To PostgreSQL, NaN equals NaN.
    return _NOT_NUMBER if value != value else value


def added_to(column: Column, value: Any) -> Any:
    """Return what is added to a column: a number, or a Cast for the server.

    Raises Unfit and Undecided.
    """
    if value is None:
        return None
    if column.base in TIMES and not column.element:
        if column.base == INTERVAL or 0 <= column.modifier < 6:
            # The driver reads a month as thirty days, so nothing can be added to the value it
            # returns. Nor are fractions of a second rounded here.
            raise Undecided
        return Cast("interval", writer_of(INTERVAL, -1, 0)(value))
    if column.base not in NUMBERS or column.element:
        raise no_addition(column.name)
    if column.domain or column.base == FLOAT4:
        return Cast(column.type, writer_of(column.base, column.modifier, 0)(value))
    return compared_with(column, value)


def total(column: Column, old: Any, added: Any) -> Any:
    """Return the sum, or a Sum for the server. Raises Unfit and Undecided."""
    if old is None or added is None:
        return None
    if isinstance(added, Cast):
        return Sum(column.domain or column.type, _literal(old), added)
    if column.base in WHOLE:
        return _in_range(column, old + added)
    if column.base == NUMERIC:
        return _sized(column, _EXACT.add(old, added))
    number = old + added
    if abs(number) == float("inf") and abs(old) != float("inf") != abs(added):
        raise out_of_range()
    return number


def _literal(old: Any) -> str:
    """Return a value that was read as a literal that PostgreSQL converts to the same value."""
    if isinstance(old, datetime.date | datetime.time):
        if getattr(old, "year", 0) == datetime.MAXYEAR:
            raise Undecided  # The driver returns infinity as the last year, too.
        return old.isoformat()
    return repr(old) if isinstance(old, float) else str(old)

