"""Counts, lengths of time and suggestions, as operators read them in sentences and tables."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_SMALLER = {"d": "h", "h": "m", "m": "s"}


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def seconds(value: float | None) -> str:
    """A length of time in its two largest units, such as 2h5m; - for None."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f}s"
    whole = round(value)
    for unit, size, below in (("d", 86_400, 3600), ("h", 3600, 60), ("m", 60, 1)):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{_SMALLER[unit]}" if rest else "")
    return f"{whole}s"


def suggestion(name: str, names: Sequence[str]) -> str:
    """What an operator who mistyped `name` may have meant: the nearest name, else all names.

    A name that begins with what was typed is nearer than any other.
    """
    begun = [each for each in names if name and each.startswith(name)]
    nearest = begun or get_close_matches(name, names, 1)
    return f"did you mean {nearest[0]}?" if nearest else f"one of {', '.join(names)}"
