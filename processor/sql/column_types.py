"""How a JSON value is written in the type of its column, and when it does not fit.

A value that the type cannot hold exactly is poison: the server's assignment cast would round it
silently, and differently in prepared and plain runs (rule 17). `writer` returns a function from a
value to the text that the type's input function reads; that function raises Unfit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from processor.transaction.values import Json, json_text

Writer = Callable[[Any], str]

BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID = 16, 17, 20, 21, 23, 25, 26
JSON, FLOAT4, FLOAT8, BPCHAR, VARCHAR = 114, 700, 701, 1042, 1043
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ = 1082, 1083, 1114, 1184, 1186, 1266
NUMERIC, UUID, JSONB, NAME, CHAR = 1700, 2950, 3802, 19, 18

WHOLE = {INT2: 1 << 15, INT4: 1 << 31, INT8: 1 << 63}
#: Types without an equality operator (json, xml, point, polygon, path): a PREPARE that compares
#: them would fail.
UNCOMPARED = frozenset({JSON, 142, 600, 604, 602})
NUMBERS = frozenset({INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC})
#: oid, money and the types of names in the catalog (regclass, ...): their input takes a number.
_NUMBERED = frozenset({OID, 790, 24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191})
#: Types from here on are not built in.
_FIRST_OWN = 16384
#: Types of text with a fixed size in bytes, which PostgreSQL cuts texts to.
_MOST_BYTES = {NAME: 63, CHAR: 1}
TIMES = frozenset({DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL, TIMETZ})

_MOST_DIGITS = 1 << 20
_FRACTION = re.compile(r":\d\d\.(\d+)")
#: The form of isoformat(), with its zone; the others are judged word by word.
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?([+-]\d\d(?::?\d\d)?|Z)?"
)
_OFFSET = re.compile(
    r"(?:\d:\d\d(?::\d\d(?:\.\d+)?)?|T\d{4,6}(?:\.\d+)?)\s*(?:[ap]m)?\s*[+-]\s?\d", re.I
)
_WORD = re.compile(r"(?<![a-z])[a-z]+", re.I)
#: Words in a date or time that name no zone.
_NO_ZONE = re.compile(
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*"
    r"|today|tomorrow|yesterday|am|pm|ad|bc|t|j|jd|julian|at|on|st|nd|rd|th|allballs", re.I,
)
#: These mean one moment, or none, in every zone.
_MOMENT = re.compile(r"\s*(?:[+-]?infinity|epoch|now)\s*", re.I)
_INTEGER = re.compile(r"[+-]?\d{1,400}(?:\.0*)?").fullmatch
_OCTAL = re.compile(r"\\[0-3][0-7][0-7]").fullmatch


class Unfit(Exception):
    """A value does not fit its column. The message does not contain the value (rule 19)."""

    def __init__(self, sqlstate: str, problem: str, column: str = "") -> None:
        super().__init__(f"column {column}: {problem}" if column else problem)
        self.sqlstate = sqlstate
        self.problem = problem
        self.column = column


# What `reads` finds, too: it tells before the server what will be refused.


def out_of_range() -> Unfit:
    """Return the error for a number that its column cannot hold."""
    return Unfit("22003", "the number is out of the column's range")


def no_equality(column: str) -> Unfit:
    """Return the error for a condition on a column whose values cannot be compared."""
    return Unfit("42883", f"column {column} has no equality operator, so where cannot use it")


def no_addition(column: str) -> Unfit:
    """Return the error for an addition to a column that holds neither numbers nor times."""
    return Unfit("42804", f"column {column} is neither a number nor a time, so add fails")


def writer(base: int, modifier: int, element: int) -> Writer:
    """Return the function that writes values of a type: its oid, modifier and element's oid."""
    if element and base not in (JSON, JSONB):
        return _array(writer(element, modifier, 0), element in (JSON, JSONB))
    if base in WHOLE:
        return _whole(WHOLE[base])
    if base in (FLOAT4, FLOAT8):
        return _float(base)
    if base == NUMERIC:
        return _numeric(modifier)
    if base in (JSON, JSONB):
        return json_text
    if base in (TEXT, VARCHAR, BPCHAR):
        return _text
    if base in _MOST_BYTES:
        return _short(_MOST_BYTES[base])
    if base == BOOL:
        return _bool
    if base in TIMES:
        return _time(base, modifier)
    if base >= _FIRST_OWN or base in _NUMBERED:
        return _own(lists=base >= _FIRST_OWN)
    return _string


def _whole(limit: int) -> Writer:
    def write(value: Any) -> str:
        if type(value) is int:
            if -limit <= value < limit:
                return str(value)
            raise out_of_range()
        if isinstance(value, Decimal):
            if value.adjusted() > 20:
                # Refused before it is written out: 1E+999999999 is eleven bytes in the stream.
                raise out_of_range()
            if value == value.to_integral_value():
                return write(int(value))
            raise Unfit("22P02", "the number has a fraction, but the column takes only integers")
        return _string(value)

    return write


def _float(base: int) -> Writer:
    bits = 24 if base == FLOAT4 else 53

    def check(number: int) -> None:
        size = abs(number)
        # A float holds so many bits, and zeros behind them.
        if size >> bits and size >> ((size & -size).bit_length() - 1) >> bits:
            raise Unfit("22003", "the number is too large for a float to hold exactly")

    def write(value: Any) -> str:
        if type(value) is int:
            check(value)
            return str(value)
        text = str(value) if isinstance(value, Decimal) else _string(value)
        if _INTEGER(text):
            check(int(text.partition(".")[0]))
        return text

    return write


def _short(most: int) -> Writer:
    def write(value: Any) -> str:
        text = _text(value)
        # "char" also has the form \ooo for a byte that is no ASCII.
        if len(text.encode()) > most and not (most == 1 and _OCTAL(text)):
            raise Unfit("22001", f"the text is longer than {most} bytes")
        return text

    return write


def _numeric(modifier: int) -> Writer:
    scale = None if modifier < 4 else _scale(modifier)

    def write(value: Any) -> str:
        if isinstance(value, Decimal):
            if scale is not None and _digits(value) > scale:
                raise Unfit("22003", f"the number has more than {scale} decimal places")
            return str(value)
        if type(value) is int:
            if scale is not None and scale < 0 and value % 10**-scale:
                raise Unfit("22003", "the number is more precise than the column's scale")
            return str(value)
        text = _string(value)
        if scale is not None:
            try:
                number = Decimal(text)
            except ArithmeticError:
                return text
            if number.is_finite() and _digits(number) > scale:
                raise Unfit("22003", f"the number has more than {scale} decimal places")
        return text

    return write


def _scale(modifier: int) -> int:
    # The scale is eleven bits of the modifier, signed since PostgreSQL 15.
    return (((modifier - 4) & 0x7FF) ^ 1024) - 1024


def _digits(value: Decimal) -> int:
    """Return the significant decimal places. Not by normalize(), which rounds to its context."""
    _, digits, exponent = value.as_tuple()
    if not value or not isinstance(exponent, int):
        return -_MOST_DIGITS
    zeros = next(n for n, digit in enumerate(reversed(digits)) if digit)
    return -exponent - zeros


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal)):
        return str(value)
    raise Unfit("42804", f"a text column cannot take {_kind(value)}")


def _bool(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _string(value)


def _time(base: int, modifier: int) -> Writer:
    # An interval has its precision in the lower half of its modifier; 0xFFFF means none is given.
    given = modifier & 0xFFFF if base == INTERVAL and modifier >= 0 else modifier
    digits = given if 0 <= given < 6 else 6

    zoned = _ZONED.get(base)

    def write(value: Any) -> str:
        text = _string(value)
        if zoned is not None and zoned != has_zone(text) and not _MOMENT.fullmatch(text):
            raise Unfit("22007", _WITHOUT_ZONE if zoned else _WITH_ZONE)
        fraction = _FRACTION.search(text)
        if fraction and len(fraction[1].rstrip("0")) > digits:
            raise Unfit("22008", f"the time has more than {digits} decimal places of a second")
        if base == DATE and ":" in text:
            raise Unfit("22007", "a date column cannot take a time of day")
        return text

    return write


def has_zone(text: str) -> bool:
    """Return whether a date or time in any form that PostgreSQL reads names its time zone."""
    iso = _ISO.fullmatch(text)
    if iso:
        return iso[1] is not None
    if _OFFSET.search(text):
        return True
    return any(not _NO_ZONE.fullmatch(word) for word in _WORD.findall(text))


# Of PostgreSQL, a timestamptz without a zone gets the session's, and a timestamp loses its own.
_ZONED = {TIMESTAMPTZ: True, TIMETZ: True, TIMESTAMP: False, TIME: False}
_WITHOUT_ZONE = "the column needs a time with its time zone; use an aware datetime"
_WITH_ZONE = "the column cannot take a time zone; convert the time and send it without"


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise Unfit("42804", f"the column cannot take {_kind(value)}")


def _own(*, lists: bool) -> Writer:
    """Return the writer of a type whose input function decides, such as that of an extension."""

    def write(value: Any) -> str:
        if type(value) is int or isinstance(value, Decimal):
            return str(value)
        if lists and isinstance(value, list) and all(map(_is_number, value)):
            # The text form of pgvector: [1,2.5,3].
            return json_text(value)
        return _string(value)

    return write


def _is_number(value: object) -> bool:
    return type(value) is int or isinstance(value, Decimal)


def _array(item: Writer, of_json: bool) -> Writer:
    def element(value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, list) and not of_json:
            return write(value)
        text = item(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    def write(value: Any) -> str:
        if not isinstance(value, list):
            # An array in PostgreSQL's own text form.
            return _string(value)
        return "{" + ",".join(map(element, value)) + "}"

    return write


def _kind(value: object) -> str:
    names = {
        dict: "an object", list: "an array", bool: "a boolean", int: "a number",
        Decimal: "a number", Json: "a JSON document",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")
