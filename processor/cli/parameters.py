"""What operators write in a command: lengths of time, moments, ids of transactions.

A length is 90, 15m, 2h or 7d; a moment is one ago, or a date with its zone.
"""

from __future__ import annotations

import datetime
import re

import click

from processor.errors import InvalidTransaction
from processor.identity import canonical_id

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 100 * 366 * 86_400


class Length(click.ParamType[float]):
    """A length of time, in seconds."""

    name = "length"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = _LENGTH.fullmatch(value)
        length = float(found[1]) * _UNITS[found[2]] if found else 0.0
        if not 0 < length <= _LONGEST:
            self.fail(f"{value[:40]!r} is no length of time (write 90, 15m, 2h or 7d)", param, ctx)
        return length


class Moment(click.ParamType[datetime.datetime]):
    """A moment: a date with its zone, or how long ago."""

    name = "moment"

    def convert(
        self, value: str | datetime.datetime, param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime.datetime:  # fmt: skip
        if isinstance(value, datetime.datetime):
            return value
        if _LENGTH.fullmatch(value):
            ago = datetime.timedelta(seconds=Length().convert(value, param, ctx))
            return datetime.datetime.now(datetime.UTC) - ago
        try:
            moment = datetime.datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value[:40]!r} is no moment (write 2h, or 2026-11-21T06:00:00Z)", param, ctx
            )
        if moment.tzinfo is None:
            self.fail(f"{value[:40]!r} has no zone (write 2026-11-21T06:00:00Z)", param, ctx)
        return moment


class TransactionId(click.ParamType[str]):
    """The id of a transaction, in the form in which it is printed."""

    name = "id"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:  # fmt: skip
        try:
            return canonical_id("id", value)
        except InvalidTransaction:
            self.fail(f"{value[:60]!r} is no id (give a UUID, as `submit` prints it)", param, ctx)
