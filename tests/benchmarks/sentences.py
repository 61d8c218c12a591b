"""Counts the strings that the processor sends to PostgreSQL: where round trips come from."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from processor.connections.postgres_session import PostgresSession
from tests.benchmarks.options import note

WIDTH = 90
# Values differ from call to call; the kind of string does not.
VALUES = re.compile(r"'[^']*(?:'|$)|\d+")


@contextlib.contextmanager
def counted(wanted: bool, title: str) -> Iterator[None]:
    """If `wanted`, print at the end how often each kind of string was sent."""
    counts: Counter[str] = Counter()
    send = PostgresSession.send

    def counting(self: PostgresSession, sql: str, **options: Any) -> None:
        counts[" ".join(VALUES.sub("?", sql[: 4 * WIDTH]).split())[:WIDTH]] += 1
        send(self, sql, **options)

    if wanted:
        PostgresSession.send = counting
    try:
        yield
    finally:
        PostgresSession.send = send
    if wanted:
        note(f"\n{title}")
        for start, count in counts.most_common():
            note(f"{count:6d}  {start}")
