"""Commit notes: one note per batch, in which the owner of a lane publishes its outcome (rule 21).

Notes are in the lane's `:commits` stream, which is bounded. A note answers only for the entries
that it names, of its own buffer. For any other transaction, ask the ledger and the dead letters.

DESIGN. A range of entry ids would be shorter, but it would also answer for entries that are not in
the batch: one that Redis lost before it was read, or one that died while the entries around it
waited to be read again.

========= ==========================================================================================
v         version of the note; absent in version 1, which release 0.1 wrote
buffer    identity of the buffer whose entry ids these are
position  system, timeline and LSN of the commit; of the look-up for entries already in the ledger
at        time of the note, Unix seconds
in        ids of entries committed from the stream, in order, without their common prefix
also      ids of transactions committed from elsewhere
dead      transaction id -> entry id and reason, as JSON
discarded transaction id -> entry id, for dead letters that an operator discarded, as JSON
========= ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command
from processor.connections.wal_position import Position

_NOTES_KEPT = 10_000
#: The version of the notes that this release writes and reads; a later one is left alone.
_VERSION = 1
_EntryAndReason = Annotated[list[str], msgspec.Meta(min_length=2)]


@dataclass(frozen=True, slots=True)
class NotedOutcome:
    """The outcome of one transaction, from a note."""

    state: Literal["committed", "dead", "discarded"]
    position: Position | None
    at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EntryIds:
    """Entry ids in ascending order, as a note stores them.

    The text is the common prefix, then the rest of each id, without the suffix "-0". A reader of
    many notes searches the text without splitting it.
    """

    text: str = ""

    @classmethod
    def of(cls, entries: Iterable[str]) -> EntryIds:
        """Return the ids of a batch in this form."""
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
        """The first and the last id."""
        if not self.text:
            return None
        common, _, rest = self.text.partition(",")
        first, last = common + rest.partition(",")[0], common + rest.rpartition(",")[2]
        return _whole(first), _whole(last)


def _common(smallest: str, greatest: str) -> str:
    """Return the prefix that all texts between these two have in common."""
    pairs = enumerate(zip(smallest, greatest, strict=False))
    return smallest[: next((i for i, (one, other) in pairs if one != other), len(smallest))]


def _whole(entry: str) -> str:
    return entry if "-" in entry else f"{entry}-0"


@dataclass(frozen=True, slots=True)
class Note:
    """One note; its fields are described at the head of this file."""

    buffer: str
    at: float
    position: Position | None = None
    entries: EntryIds = EntryIds()
    also: frozenset[str] = frozenset()
    dead: Mapping[str, Sequence[str]] = field(default_factory=dict)
    discarded: Mapping[str, str] = field(default_factory=dict)

    def outcome_of(self, transaction_id: str, entry_id: str) -> NotedOutcome | None:
        """Return the outcome of a transaction, None if the note does not answer for it.

        `entry_id` is "" for a delayed transaction, because its receipt does not know its entry id.
        """
        dead = self.dead.get(transaction_id)
        if dead is not None and entry_id in (dead[0], ""):
            return NotedOutcome("dead", None, self.at, dead[1])
        if transaction_id in self.discarded and entry_id in (self.discarded[transaction_id], ""):
            return NotedOutcome("discarded", None, self.at)
        if transaction_id in self.also or entry_id in self.entries:
            return NotedOutcome("committed", self.position, self.at)
        return None


def write(lane: Lane, note: Note) -> Command:
    """Write a note."""
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
    return ("XADD", lane.commits, "MAXLEN", "~", _NOTES_KEPT, "*", *flat)


def parse(fields: Sequence[bytes]) -> Note:
    """Return the note in the fields of a stream entry. Raises ValueError and KeyError.

    A note of a later version raises ValueError: the ledger answers in its place.
    """
    try:
        return _parse(fields)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def is_later(fields: Sequence[bytes]) -> bool:
    """Whether a note is one of a later release."""
    version = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"v", b"1")
    return version.isdigit() and int(version[:10]) > _VERSION


def _parse(fields: Sequence[bytes]) -> Note:
    found = {
        k.decode(): v.decode(errors="replace")
        for k, v in zip(fields[::2], fields[1::2], strict=True)
    }
    if is_later(fields):
        raise ValueError(f"commit note of version {found['v']}")
    position = found.get("position")
    return Note(
        found["buffer"],
        float(found["at"]),
        Position.parse(position) if position else None,
        EntryIds(found.get("in", "")),
        _ids(found.get("also", "")),
        msgspec.json.decode(found.get("dead", "{}"), type=dict[str, _EntryAndReason]),
        msgspec.json.decode(found.get("discarded", "{}"), type=dict[str, str]),
    )


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) if text else frozenset()
