"""What operators write behind a command: durations, times, ids; and the servers that it needs.

Each `callback` of an option or argument turns the text into a value, or raises a usage error that
says what to write instead.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar

import click

from processor.admin.sessions import OperatorSessions
from processor.cli.config_option import settings_file
from processor.config import loader
from processor.errors import InvalidTransaction
from processor.transaction.ids import canonical_id

R = TypeVar("R")

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 100 * 366 * 86_400


def with_sessions(function: Callable[..., R]) -> Callable[..., R]:
    """Hand a command an OperatorSessions as its first argument. Raises ConfigError."""

    def call(*arguments: Any, **named: Any) -> R:
        settings = loader.configure(settings_file(click.get_current_context()))
        return function(OperatorSessions(settings), *arguments, **named)

    return update_wrapper(call, function)


def duration(
    context: click.Context, option: click.Parameter, value: str | None
) -> float | None:
    """A duration such as 90, 15m, 2h or 7d, in seconds."""
    if value is None:
        return None
    found = _DURATION.fullmatch(value)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise click.BadParameter(f"{value[:40]!r} is not a duration (write 90, 15m, 2h or 7d)",
                                 context, option)
    return seconds


def past_time(
    context: click.Context, option: click.Parameter, value: str | None
) -> datetime.datetime | None:
    """A time: a date with its time zone, or a duration before now."""
    if value is None:
        return None
    if _DURATION.fullmatch(value):
        ago = datetime.timedelta(seconds=duration(context, option, value) or 0.0)
        return datetime.datetime.now(datetime.UTC) - ago
    try:
        at = datetime.datetime.fromisoformat(value)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        problem = "is not a time" if at is None else "has no time zone"
        raise click.BadParameter(
            f"{value[:40]!r} {problem} (write 2h, or 2026-11-21T06:00:00Z)", context, option
        )
    return at


def transaction_id(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """The id of a transaction, in the form in which commands print it."""
    return _uuid(context, option, value, "a transaction id", "as `submit` prints it")


def buffer_id(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The identity of a buffer, in the form in which commands print it."""
    return _uuid(context, option, value, "a buffer id", "as `dead list` prints it")


def transaction_ids(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[str]:
    """Several transaction ids, each once."""
    return list(dict.fromkeys(transaction_id(context, option, each) or "" for each in values))


def _uuid(
    context: click.Context, option: click.Parameter, value: str | None, what: str, where: str
) -> str | None:
    if value is None:
        return None
    try:
        return canonical_id("id", value)
    except InvalidTransaction:
        raise click.BadParameter(
            f"{value[:60]!r} is not {what} (give a UUID, {where})", context, option
        ) from None
