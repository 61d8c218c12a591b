"""What operators write in a command: lengths of time, moments, ids of transactions.

A length is 90, 15m, 2h or 7d; a moment is one ago, or a date with its zone. Each of these is the
`callback` of an option or argument, and names what would be right.
"""

from __future__ import annotations

import datetime
import re

import click

from processor.errors import InvalidTransaction
from processor.transaction.ids import canonical_id

_LENGTH = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 100 * 366 * 86_400


def length(
    context: click.Context, option: click.Parameter, value: str | None
) -> float | None:
    """A length of time, in seconds."""
    if value is None:
        return None
    found = _LENGTH.fullmatch(value)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise click.BadParameter(f"{value[:40]!r} is no length of time (write 90, 15m, 2h or 7d)",
                                 context, option)
    return seconds


def moment(
    context: click.Context, option: click.Parameter, value: str | None
) -> datetime.datetime | None:
    """A moment: a date with its zone, or how long ago."""
    if value is None:
        return None
    if _LENGTH.fullmatch(value):
        ago = datetime.timedelta(seconds=length(context, option, value) or 0.0)
        return datetime.datetime.now(datetime.UTC) - ago
    try:
        at = datetime.datetime.fromisoformat(value)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        problem = "is no moment" if at is None else "has no zone"
        raise click.BadParameter(
            f"{value[:40]!r} {problem} (write 2h, or 2026-11-21T06:00:00Z)", context, option
        )
    return at


def transaction_id(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """The id of a transaction, in the form in which it is printed."""
    if value is None:
        return None
    try:
        return canonical_id("id", value)
    except InvalidTransaction:
        raise click.BadParameter(
            f"{value[:60]!r} is no id (give a UUID, as `submit` prints it)", context, option
        ) from None


def buffer_id(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The identity of a buffer, as dead letters show it."""
    if value is None:
        return None
    try:
        return canonical_id("buffer", value)
    except InvalidTransaction:
        raise click.BadParameter(
            f"{value[:60]!r} is no buffer (give the UUID that `dead list` prints)", context, option
        ) from None


def transaction_ids(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[str]:
    """Several of them, each once."""
    return list(dict.fromkeys(transaction_id(context, option, each) or "" for each in values))
