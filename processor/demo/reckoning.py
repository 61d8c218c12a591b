"""The reckoning: the ids that producers hold receipts for, compared with the rows in PostgreSQL.

Neither side relies on what the processor reports. A transaction that was applied left one row in
`effect`; no row means lost (or dead), two rows mean doubled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from processor.connections.postgres_session import PostgresSession
from processor.demo.observatory import TELESCOPES
from processor.demo.producers import AGAIN_EVERY, acknowledged

_REORDERED = """\
SELECT key, count(*) FILTER (WHERE number < before)
FROM (SELECT key, number, lag(number) OVER (PARTITION BY key ORDER BY position) AS before
      FROM effect) AS pairs GROUP BY key
HAVING count(*) FILTER (WHERE number < before) > 0"""
_ADDED = """\
SELECT (SELECT coalesce(sum(files), 0) FROM observation), (SELECT count(*) FROM raw_file),
       (SELECT coalesce(sum(bytes), 0) FROM observation),
       (SELECT coalesce(sum(bytes), 0) FROM raw_file),
       (SELECT coalesce(sum(observations), 0) FROM telescope), (SELECT count(*) FROM observation)"""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the acknowledged transactions of one producer, or of all.

    `again` of the `submitted` were submitted twice.
    """

    submitted: int = 0
    again: int = 0
    committed: int = 0
    dead: int = 0
    lost: int = 0
    doubled: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Tally)))


@dataclass(frozen=True, slots=True)
class Reckoning:
    """The tallies by producer, the number of keys out of order, and whether sums match their rows.

    `waiting` entries were still in the buffer; they count as lost.
    """

    tallies: Mapping[str, Tally]
    reordered: int
    sums_agree: bool
    waiting: int = 0

    @property
    def total(self) -> Tally:
        return sum(self.tallies.values(), Tally())

    @property
    def holds(self) -> bool:
        """Whether every accepted transaction was applied once and in order."""
        total = self.total
        return (
            total.committed == total.submitted > 0
            and not (total.dead or total.lost or total.doubled or self.reordered or self.waiting)
            and self.sums_agree
        )

    def line(self) -> str:
        """The last line of the demo."""
        total = self.total
        return (
            f"submitted {total.submitted}  committed {total.committed}  dead {total.dead}"
            f"  lost {total.lost}  doubled {total.doubled}"
        )


def reckon(directory: Path, database: PostgresSession, waiting: int = 0) -> Reckoning:
    """Read both sides and compare."""
    rows = database.run("SELECT transaction::text, count(*) FROM effect GROUP BY transaction")
    effects = {row[0]: int(row[1]) for row in rows}
    rows = database.run("SELECT id::text FROM processor.dead_letter WHERE outcome = 'dead'")
    dead = {row[0] for row in rows}
    tallies = {}
    for name in TELESCOPES:
        path = acknowledged(directory, name)
        ids = path.read_text().split() if path.exists() else []
        tallies[name] = tally(ids, effects, dead)
    added = database.run(_ADDED)[0]
    agree = list(added[::2]) == list(added[1::2])
    return Reckoning(tallies, len(database.run(_REORDERED)), agree, waiting)


def tally(ids: list[str], effects: Mapping[str, int], dead: set[str]) -> Tally:
    """What became of these ids; `effects` counts how often each was applied."""
    times = Counter(min(effects.get(each, 0), 2) for each in ids)
    dead_count = sum(each in dead for each in ids if each not in effects)
    return Tally(
        submitted=len(ids), again=len(ids) // AGAIN_EVERY, committed=times[1] + times[2],
        dead=dead_count, lost=times[0] - dead_count, doubled=times[2],
    )  # fmt: skip
