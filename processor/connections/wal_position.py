"""Positions in PostgreSQL's log: which one proves that a commit was replayed (rule 34).

A position means something only together with the server's system identifier and its timeline: a
promoted server counts on from where it stood, over what it never received.
"""

from __future__ import annotations

from dataclasses import dataclass

_PAGE = 8192
_SEGMENT_START = 40
_PAGE_START = 24


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log of one server, on one timeline."""

    system: str
    timeline: int
    lsn: int

    def comparable(self, other: Position) -> bool:
        """Whether both are of the same server and timeline; else neither is before the other."""
        return (self.system, self.timeline) == (other.system, other.timeline)

    def reaches(self, other: Position) -> bool:
        """Whether a server that replayed up to here has replayed `other`."""
        return self.comparable(other) and self.lsn >= other.lsn

    def __str__(self) -> str:
        return f"{self.system}/{self.timeline}/{written(self.lsn)}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position of a text made by `str`. Raises ValueError."""
        system, timeline, lsn = text.split("/", 2)
        return cls(system, int(timeline), number(lsn))


def is_superseded(primary: tuple[str, int], newest: tuple[str, int] | None) -> bool:
    """Whether a primary is an old one: a later timeline of its cluster was written to since.

    Both are given as system identifier and timeline; `newest` is the primary written to last.
    """
    return newest is not None and newest[0] == primary[0] and newest[1] > primary[1]


def number(lsn: str) -> int:
    """An LSN as a number, from PostgreSQL's text of it. Raises ValueError."""
    high, separator, low = lsn.partition("/")
    if not separator:
        raise ValueError("not an LSN")
    return (int(high, 16) << 32) | int(low, 16)


def is_less(lsn: str | None, other: str | None) -> bool:
    """Whether one LSN is known to be before another. Raises ValueError."""
    return bool(lsn and other) and number(lsn or "") < number(other or "")


def written(lsn: int) -> str:
    """An LSN as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def after_commit(current: str, insert: str, synchronous: str) -> int:
    """The LSN that a replica must have replayed to show a commit, read just after it.

    The written position, unless synchronous_commit is off: then it lags behind the commit, and the
    insert position is taken - which stands just behind a page header at times, where no replica
    ever arrives while nothing else is written.
    """
    if synchronous != "off":
        return number(current)
    lsn = number(insert)
    return lsn - lsn % _PAGE if lsn % _PAGE in (_PAGE_START, _SEGMENT_START) else lsn
