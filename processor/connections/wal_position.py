"""Positions in the WAL, and which one proves that a commit is replayed (rule 34).

An LSN has a meaning only together with the system identifier and the timeline of its server: after
a promotion, a server reuses the LSNs of records that it never received.
"""

from __future__ import annotations

from dataclasses import dataclass

_PAGE = 8192
_SEGMENT_START = 40
_PAGE_START = 24


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the WAL of one system, on one timeline."""

    system: str
    timeline: int
    lsn: int

    def comparable(self, other: Position) -> bool:
        """Whether both have the same system and timeline; otherwise they have no order."""
        return (self.system, self.timeline) == (other.system, other.timeline)

    def reaches(self, other: Position) -> bool:
        """Whether a server that replayed up to here has replayed `other`."""
        return self.comparable(other) and self.lsn >= other.lsn

    def __str__(self) -> str:
        return f"{self.system}/{self.timeline}/{format_lsn(self.lsn)}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position in a text made by `str`. Raises ValueError."""
        system, timeline, lsn = text.split("/", 2)
        return cls(system, int(timeline), parse_lsn(lsn))


def is_superseded(primary: tuple[str, int], newest: tuple[str, int] | None) -> bool:
    """Whether a primary is an old one: a later timeline of its cluster was written to since.

    Both are given as system identifier and timeline; `newest` is the primary written to last.
    """
    return newest is not None and newest[0] == primary[0] and newest[1] > primary[1]


def parse_lsn(lsn: str) -> int:
    """Return an LSN as a number, from PostgreSQL's text. Raises ValueError."""
    high, separator, low = lsn.partition("/")
    if not separator:
        raise ValueError("not an LSN")
    return (int(high, 16) << 32) | int(low, 16)


def is_less(lsn: str | None, other: str | None) -> bool:
    """Whether one LSN is known to be before another. Raises ValueError."""
    return bool(lsn and other) and parse_lsn(lsn or "") < parse_lsn(other or "")


def format_lsn(lsn: int) -> str:
    """Return an LSN as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def after_commit(current: str, insert: str, synchronous: str) -> int:
    """Return the LSN that a replica must have replayed to show a commit.

    `current` and `insert` are the positions read just after the commit, `synchronous` its
    synchronous_commit. The result is `current`, unless synchronous_commit is off: then `current`
    is behind the commit, and the result is `insert`. That can be just past a page header, which no
    replica reaches until another record is written, so it is rounded down.
    """
    if synchronous != "off":
        return parse_lsn(current)
    lsn = parse_lsn(insert)
    return lsn - lsn % _PAGE if lsn % _PAGE in (_PAGE_START, _SEGMENT_START) else lsn
