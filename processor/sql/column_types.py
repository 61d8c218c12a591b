"""How a JSON value is written in the type of its column, and when that type does not hold it.

A value that the type does not hold exactly is poison: the server's assignment cast would round it
silently, and differently for prepared and plain runs (rule 17). `writer` answers with a function
from a value to the text that the type's own input function reads; the function raises Unfit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

Writer = Callable[[Any], str]

BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID = 16, 17, 20, 21, 23, 25, 26
JSON, FLOAT4, FLOAT8, BPCHAR, VARCHAR = 114, 700, 701, 1042, 1043
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ = 1082, 1083, 1114, 1184, 1186, 1266
NUMERIC, UUID, JSONB, NAME = 1700, 2950, 3802, 19

WHOLE = {INT2: 1 << 15, INT4: 1 << 31, INT8: 1 << 63}
#: Types without equality: json, xml, point, polygon, path... a PREPARE with them would fail.
UNCOMPARED = frozenset({JSON, 142, 600, 604, 602})
NUMBERS = frozenset({INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC})
TIMES = frozenset({DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ})

_MOST_DIGITS = 1 << 20
_FRACTION = re.compile(r":\d\d\.(\d+)")
_json = msgspec.json.Encoder(decimal_format="number")


class Unfit(Exception):
    """A value does not fit its column: an SQLSTATE, and words that do not tell the value."""

    def __init__(self, sqlstate: str, problem: str) -> None:
        super().__init__(problem)
        self.sqlstate = sqlstate


def writer(base: int, modifier: int, element: int) -> Writer:
    """The function that writes values of a type, given by oid, modifier and element type."""
    if element and base not in (JSON, JSONB):
        return _array(writer(element, modifier, 0), element in (JSON, JSONB))
    if base in WHOLE:
        return _whole(WHOLE[base])
    if base in (FLOAT4, FLOAT8):
        return _float
    if base == NUMERIC:
        return _numeric(modifier)
    if base in (JSON, JSONB):
        return _document
    if base in (TEXT, VARCHAR, BPCHAR, NAME):
        return _text
    if base == BOOL:
        return _bool
    if base in TIMES:
        return _time(base, modifier)
    return _string


def _whole(limit: int) -> Writer:
    def write(value: Any) -> str:
        if type(value) is int:
            if -limit <= value < limit:
                return str(value)
            raise Unfit("22003", "the number is out of the column's range")
        if isinstance(value, Decimal):
            if value.adjusted() > 20:
                # Before it is written out: 1E+999999999 is eleven bytes in the stream.
                raise Unfit("22003", "the number is out of the column's range")
            if value == value.to_integral_value():
                return write(int(value))
            raise Unfit("22P02", "the number has a fraction, the column holds whole numbers")
        return _string(value)

    return write


def _float(value: Any) -> str:
    if type(value) is int:
        if abs(value) > 1 << 53 and (abs(value) >> 1024 or int(float(value)) != value):
            raise Unfit("22003", "the number is too large to be held exactly by a float")
        return str(value)
    return str(value) if isinstance(value, Decimal) else _string(value)


def _numeric(modifier: int) -> Writer:
    scale = None if modifier < 4 else _scale(modifier)

    def write(value: Any) -> str:
        if isinstance(value, Decimal):
            if scale is not None and _digits(value) > scale:
                raise Unfit("22003", f"the number has more than the column's {scale} decimals")
            return str(value)
        if type(value) is int:
            if scale is not None and scale < 0 and value % 10**-scale:
                raise Unfit("22003", "the number is finer than the column's scale")
            return str(value)
        text = _string(value)
        if scale is not None:
            try:
                number = Decimal(text)
            except ArithmeticError:
                return text
            if number.is_finite() and _digits(number) > scale:
                raise Unfit("22003", f"the number has more than the column's {scale} decimals")
        return text

    return write


def _scale(modifier: int) -> int:
    # Eleven bits, signed since PostgreSQL 15.
    return (((modifier - 4) & 0x7FF) ^ 1024) - 1024


def _digits(value: Decimal) -> int:
    """Decimals that count. Not by normalize(), which rounds to the precision of its context."""
    _, digits, exponent = value.as_tuple()
    if not value or not isinstance(exponent, int):
        return -_MOST_DIGITS
    zeros = next(n for n, digit in enumerate(reversed(digits)) if digit)
    return -exponent - zeros


def _document(value: Any) -> str:
    return _json.encode(value).decode()


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal)):
        return str(value)
    raise Unfit("42804", f"a {_kind(value)} for a column of text")


def _bool(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _string(value)


def _time(base: int, modifier: int) -> Writer:
    # An interval keeps its precision in the lower half of its modifier, with 0xFFFF for none.
    given = modifier & 0xFFFF if base == INTERVAL and modifier >= 0 else modifier
    digits = given if 0 <= given < 6 else 6

    def write(value: Any) -> str:
        text = _string(value)
        fraction = _FRACTION.search(text)
        if fraction and len(fraction[1].rstrip("0")) > digits:
            raise Unfit("22008", f"a time finer than the column's {digits} decimals of a second")
        if base == DATE and ":" in text:
            raise Unfit("22007", "a time of day for a column of dates")
        return text

    return write


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise Unfit("42804", f"a {_kind(value)} for a column that needs a text of its type")


def _array(item: Writer, documents: bool) -> Writer:
    def element(value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, list) and not documents:
            return write(value)
        text = item(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    def write(value: Any) -> str:
        if not isinstance(value, list):
            # PostgreSQL's own text form of an array.
            return _string(value)
        return "{" + ",".join(map(element, value)) + "}"

    return write


def _kind(value: object) -> str:
    names = {dict: "mapping", list: "list", bool: "bool", int: "number", Decimal: "number"}
    return names.get(type(value), type(value).__name__)
