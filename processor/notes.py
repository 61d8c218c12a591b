"""Commit notes: what the owner of a lane tells about a batch, one note for all of it (rule 21).

A note lies in the lane's `:commits` stream, which is bounded. It answers only for its own range of
entries and its own buffer; for what no note tells, the ledger and the dead letters are asked.

========= ==========================================================================================
buffer    identity of the buffer whose entry ids these are
position  system, timeline and LSN of the commit; of the look-up for what the ledger knew already
at        when, Unix seconds
first     first and last entry id of the batch; absent if it was applied from `:parked`
last
not       transaction ids in that range that this batch did not commit (or entry ids, where the
          transaction cannot be read)
also      transaction ids that were committed from elsewhere
dead      transaction id -> entry id and reason, as JSON
========= ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from processor.buffer import Lane
from processor.parked import order
from processor.position import Position
from processor.redis_connection import Command

_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Told:
    """What a note says of one transaction."""

    state: str
    position: Position | None
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """One note; see the head of this file."""

    buffer: str
    at: float
    position: Position | None = None
    first: str = ""
    last: str = ""
    absent: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    dead: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def tells(self, transaction_id: str, entry_id: str) -> Told | None:
        """What it says of a transaction, None if it does not answer for it.

        `entry_id` is empty for one that was delayed, since nobody knows under which id it came.
        """
        grave = self.dead.get(transaction_id)
        if grave is not None and entry_id in (grave[0], ""):
            return Told("dead", None, self.at, grave[1])
        if transaction_id in self.also:
            return Told("committed", self.position, self.at)
        if not self.first or not entry_id or not {transaction_id, entry_id}.isdisjoint(self.absent):
            return None
        if order(self.first) <= order(entry_id) <= order(self.last):
            return Told("committed", self.position, self.at)
        return None


def write(lane: Lane, note: Note) -> Command:
    """The command that leaves a note."""
    fields = {
        "buffer": note.buffer,
        "position": str(note.position or ""),
        "at": repr(note.at),
        "first": note.first,
        "last": note.last,
        "not": ",".join(note.absent),
        "also": ",".join(note.also),
        "dead": msgspec.json.encode(note.dead) if note.dead else "",
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
        found.get("first", ""),
        found.get("last", ""),
        _ids(found.get("not", "")),
        _ids(found.get("also", "")),
        msgspec.json.decode(found["dead"]) if "dead" in found else {},
    )


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) if text else frozenset()
