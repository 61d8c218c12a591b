"""Commit notes: what the owner of a lane tells about a batch, one note for all of it (rule 21).

A note lies in the lane's `:commits` stream, which is bounded. It answers only for the entries that
it names and its own buffer; for what no note tells, the ledger and the dead letters are asked.

DESIGN. A range would be shorter, but it also answers for what lay in it once: an entry that Redis
lost before it was read, one that died while its neighbours waited to be read again.

========= ==========================================================================================
buffer    identity of the buffer whose entry ids these are
position  system, timeline and LSN of the commit; of the look-up for what the ledger knew already
at        when, Unix seconds
in        entry ids that were committed from the stream, in order, without what they have in common
also      transaction ids that were committed from elsewhere
dead      transaction id -> entry id and reason, as JSON
discarded transaction id -> entry id of dead letters that an operator discarded, as JSON
========= ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command
from processor.connections.wal_position import Position

_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Told:
    """What a note says of one transaction."""

    state: str
    position: Position | None
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Entries:
    """Entry ids in ascending order, as they are written: what they have in common, and then of each
    what is left. A number of 0 is understood. Who reads many notes takes none of them apart.
    """

    text: str = ""

    @classmethod
    def of(cls, entries: Iterable[str]) -> Entries:
        """Those of a batch."""
        short = [entry.removesuffix("-0") for entry in entries]
        if not short:
            return cls()
        common = _common(min(short), max(short))
        return cls(",".join([common, *(each[len(common) :] for each in short)]))

    def __contains__(self, entry_id: str) -> bool:
        common, _, rest = self.text.partition(",")
        short = entry_id.removesuffix("-0")
        named = short.startswith(common) and f",{short[len(common) :]}," in f",{rest},"
        return bool(self.text and entry_id) and named

    @property
    def span(self) -> tuple[str, str] | None:
        """The first and the last of them."""
        if not self.text:
            return None
        common, _, rest = self.text.partition(",")
        first, last = common + rest.partition(",")[0], common + rest.rpartition(",")[2]
        return _whole(first), _whole(last)


def _common(least: str, greatest: str) -> str:
    """What all texts between these two begin with."""
    pairs = enumerate(zip(least, greatest, strict=False))
    return least[: next((place for place, (one, other) in pairs if one != other), len(least))]


def _whole(entry: str) -> str:
    return entry if "-" in entry else f"{entry}-0"


@dataclass(frozen=True, slots=True)
class Note:
    """One note; see the head of this file."""

    buffer: str
    at: float
    position: Position | None = None
    entries: Entries = Entries()
    also: frozenset[str] = frozenset()
    dead: Mapping[str, Sequence[str]] = field(default_factory=dict)
    discarded: Mapping[str, str] = field(default_factory=dict)

    def tells(self, transaction_id: str, entry_id: str) -> Told | None:
        """What it says of a transaction, None if it does not answer for it.

        `entry_id` is empty for one that was delayed, since nobody knows under which id it came.
        """
        grave = self.dead.get(transaction_id)
        if grave is not None and entry_id in (grave[0], ""):
            return Told("dead", None, self.at, grave[1])
        if transaction_id in self.discarded and entry_id in (self.discarded[transaction_id], ""):
            return Told("discarded", None, self.at)
        if transaction_id in self.also or entry_id in self.entries:
            return Told("committed", self.position, self.at)
        return None


def write(lane: Lane, note: Note) -> Command:
    """The command that leaves a note."""
    fields = {
        "buffer": note.buffer,
        "position": str(note.position or ""),
        "at": repr(note.at),
        "in": note.entries.text,
        "also": ",".join(note.also),
        "dead": msgspec.json.encode(note.dead) if note.dead else "",
        "discarded": msgspec.json.encode(note.discarded) if note.discarded else "",
    }
    flat: list[Any] = [part for name, value in fields.items() if value for part in (name, value)]
    return ("XADD", lane.commits, "MAXLEN", "~", _KEPT, "*", *flat)


def read(fields: Sequence[bytes]) -> Note:
    """A note from the fields of its entry. Raises ValueError or KeyError if it is none."""
    found = {
        k.decode(): v.decode(errors="replace")
        for k, v in zip(fields[::2], fields[1::2], strict=True)
    }
    position = found.get("position")
    return Note(
        found["buffer"],
        float(found["at"]),
        Position.parse(position) if position else None,
        Entries(found.get("in", "")),
        _ids(found.get("also", "")),
        msgspec.json.decode(found.get("dead", "{}")),
        msgspec.json.decode(found.get("discarded", "{}")),
    )


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) if text else frozenset()
