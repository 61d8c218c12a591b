"""A lane with what its owner remembers of it. All of it may be forgotten at any time (rule 9).

The memory is grouped in records by the module that writes each of them. Another module that has to
change a record calls a method that is named after the reason.

============= ===================================================================================
LaneCursor    how far the stream was read; written by `drain.prefetch`
LaneTurn      when the lane is next among others; written by `drain.prefetch`
LaneParking   what is parked and when it is due; written by `drain.park`, measured by `backlog`
FailingAlike  which kinds of transactions are paused; written by `drain.attempts` and `due_work`
LaneHealth    what failures say about the lane; written by `drain.attempts` (see `lane_health`)
StreamSeen    what Redis said of the stream, and whether it lost it; written by `stream_watch`
withheld      what waits in the stream for replicas; written by `drain.settle_replicated`
the rest      who owns the lane; written by `owners`
============= ===================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from processor.apply.applier import BatchText
from processor.buffer.entry_ids import StreamHistory, order
from processor.buffer.lane import Lane
from processor.buffer.lane_size import LaneSize
from processor.ledger.lane_rows import Ownership
from processor.ledger.stream_losses import LaneLoss
from processor.ownership.failing_alike import FailingAlike
from processor.ownership.lane_health import LaneHealth
from processor.ownership.replication_backlog import ReplicationBacklog
from processor.transaction.entry import Entry

#: Seconds for which nothing is added to a full Redis.
_FULL = 1.0
#: The most entries that an owner has in hand: the largest `batch.entries`.
_IN_HAND = 10_000


@dataclass(slots=True)
class Page:
    """Entries that were read together; `generation` numbers the connection to Redis.

    `first` and `last` are the entry ids that were read. `prerendered` is the batch as text, if it
    was written while PostgreSQL worked on the batch before.
    """

    generation: int
    first: str
    last: str
    entries: list[Entry] = field(default_factory=list)
    unreadable: list[tuple[Entry, str]] = field(default_factory=list)
    prerendered: BatchText | None = None


@dataclass(slots=True)
class LaneCursor:
    """How far a lane's stream was read.

    `position` is the last entry read, "-" at the head. `doorbell` is where the doorbell waits: the
    end of the stream when it was last reached, also after the position went back. `later` counts
    the entries of a later release that were passed since the head; they stay in the stream (rule
    10).
    """

    position: str = "-"
    doorbell: str = "0-0"
    page: Page | None = None
    entry_bytes: float = 65536.0
    later: int = 0
    #: The first of them, and its envelope version, as they are shown.
    first_later: tuple[str, str] | None = None
    #: Up to where they were counted, in order of entry ids.
    counted_to: tuple[int, int] = (0, 0)
    #: Whether reading stopped amid entries of a later release, to be continued at once.
    passing_later: bool = False
    #: Whether the stream was read to its end since the position last went back.
    reached_end: bool = False
    #: How many entries were read since then.
    read: int = 0
    #: Whether the next pass reads from the head again.
    rewinds: bool = False

    @property
    def passed_in_hand(self) -> bool:
        """Whether everything was read that an owner before may have had in hand."""
        return self.reached_end or self.read >= _IN_HAND

    def advance(self, last: str, count: int, entry_bytes: float) -> None:
        """`count` entries up to `last` were read, of `entry_bytes` each on average."""
        self.read += count
        self.entry_bytes = max(64.0, entry_bytes, 0.5 * (self.entry_bytes + entry_bytes))
        self.position = self.doorbell = last

    def reach_end(self) -> None:
        """Nothing lies behind the position.

        Redis may have issued lower ids since (rule 9): the next pass reads from the head, and the
        doorbell follows.
        """
        self.doorbell = "0-0" if self.position == "-" else self.position
        self.rewinds = self.reached_end = True

    def pass_later(self, entry_id: str, version: str) -> None:
        """An entry of a later release was read, and stays where it is."""
        if order(entry_id) > self.counted_to:
            self.later += 1
            self.counted_to = order(entry_id)
            self.first_later = self.first_later or (entry_id, version)

    def forget_later(self) -> None:
        """Count the entries of a later release anew, from the head."""
        self.later, self.first_later, self.counted_to = 0, None, (0, 0)

    def take_page(self) -> Page | None:
        """Return the page that was read, and let the next one be read."""
        page, self.page = self.page, None
        return page

    def rewind(self, position: str) -> None:
        """Read on from `position`, which is further back."""
        self.position, self.rewinds = position, False

    def go_back(self, position: str) -> None:
        """Drop what was read after `position`, and read it again."""
        self.position = position
        self.rewinds = self.reached_end = False
        self.read = 0
        self.page = None


@dataclass(slots=True)
class LaneTurn:
    """A lane's place in the smooth weighted round robin."""

    weight: int = 1
    oldest_age: float = 0.0
    credit: float = 0.0

    @property
    def share(self) -> float:
        """The weight, and as much again for each minute that the oldest entry waits."""
        return self.weight * (1.0 + self.oldest_age / 60.0)


@dataclass(slots=True)
class LaneParking:
    """What is parked in a lane, and when it is due.

    Until Redis was asked, everything may be there. `lines_may_come` says that an owner before,
    which was frozen, may still park what it has in hand and remove it from the stream: what is
    behind must not be read as if no line was there. `next_retry` and `next_due` are in Unix
    seconds, None if nothing is waiting. `unparked` are entries, by transaction id, that stay in the
    stream because a full Redis could not park them (rule 20). `lacks_dead_letters` says that a full
    Redis refused the places of dead letters in the lines of their keys, so that only the ledger has
    them.
    """

    has_lines: bool = True
    lines_may_come: bool = True
    has_records: bool = True
    #: How many entries were parked when Redis was last asked.
    records: int = 0
    next_retry: float | None = 0.0
    next_due: float | None = 0.0
    unparked: dict[str, Entry] = field(default_factory=dict)
    lacks_dead_letters: bool = False
    full_until: float = 0.0
    #: Where the regular look at what is parked goes on, and when it was last made (monotonic).
    look_at_records: int = 0
    look_at_lines: bytes = b""
    looked: float = 0.0

    def measured(self, size: LaneSize, *, is_final: bool) -> None:
        """Record what Redis answered; `is_final`: no owner before can park anything any more."""
        self.next_due, self.next_retry = size.next_due, size.next_retry
        self.has_lines, self.has_records = size.lines > 0, size.parked > 0
        self.lines_may_come = not is_final
        self.records = size.parked

    def forget(self) -> None:
        """Assume that everything may be there, and due."""
        self.has_lines = self.has_records = self.lines_may_come = True
        self.next_retry = self.next_due = 0.0

    def put(self, entries: Iterable[Entry]) -> None:
        """These entries were parked."""
        self.has_lines = self.has_lines or any(entry.keys for entry in entries)
        self.has_records, self.next_retry = True, 0.0

    def hold_line(self) -> None:
        """A line was found, or a dead letter was put into the lines of its keys."""
        self.has_lines = True

    def retry_soon(self) -> None:
        """Look for parked entries that are due at the next opportunity."""
        self.next_retry = 0.0

    def nothing_to_retry(self) -> None:
        """No parked entry is due, nor will be before Redis is asked again."""
        self.next_retry = None

    def leave_in_stream(self, entry: Entry) -> None:
        """A full Redis could not park this entry."""
        self.unparked[entry.id] = entry

    def read_unparked_again(self) -> None:
        """The entries that could not be parked are about to be read again."""
        self.unparked.clear()

    @property
    def unparked_keys(self) -> set[str]:
        """Keys blocked in memory, since their entries could not be parked."""
        return {key for entry in self.unparked.values() for key in entry.keys}

    def is_due(self, moment: float | None, now: float) -> bool:
        """Whether `next_due` or `next_retry` has come at `now` (Unix seconds).

        Nothing is due for a second after Redis refused to take anything new (rule 20).
        """
        return moment is not None and moment <= now and self.full_until <= time.monotonic()

    def redis_was_full(self) -> None:
        """Redis refused to take anything new: add nothing for a second."""
        self.full_until = time.monotonic() + _FULL


@dataclass(slots=True)
class StreamSeen:
    """What was last seen of a lane's stream, and the part of it that is in PostgreSQL (`kept`).

    `loss` is what Redis lost, until it is acknowledged.
    """

    seen: StreamHistory | None = None
    kept: StreamHistory | None = None
    loss: LaneLoss | None = None

    @property
    def lost(self) -> int:
        """How many entries were in a stream that Redis lost, when it was last seen."""
        return self.loss.loss.entries if self.loss is not None else 0


@dataclass(slots=True)
class OwnedLane:
    """A lane that this processor owns, or tries to take: then `owner` is None."""

    lane: Lane
    turn: LaneTurn = field(default_factory=LaneTurn)
    owner: Ownership | None = None
    #: The epoch in which this processor last owned the lane before it lost its session.
    lost_epoch: int = 0
    #: The connection to Redis on which lines and rollback were last checked; 0: check them again.
    checked_on: int = 0
    #: After Redis went back: the accept time (ms) up to which the ledger may have forgotten.
    doubtful_until: int | None = None
    cursor: LaneCursor = field(default_factory=LaneCursor)
    parking: LaneParking = field(default_factory=LaneParking)
    health: LaneHealth = field(default_factory=LaneHealth)
    alike: FailingAlike = field(default_factory=FailingAlike)
    streamed: StreamSeen = field(default_factory=StreamSeen)
    withheld: ReplicationBacklog = field(default_factory=ReplicationBacklog)

    @property
    def name(self) -> str:
        """Queue and partition, e.g. "default:0"."""
        return self.lane.name

    def forget(self) -> None:
        """Trust nothing that was read: start from the head, and let the ledger decide (rule 9)."""
        self.withheld.forget()
        self.alike.look_for_leftovers()
        self.read_again()

    def read_again(self) -> None:
        """Read again what is not settled. What is withheld is committed and still there."""
        self.cursor.go_back(self.withheld.last or "-")
        self.parking.forget()
        if not self.withheld:
            self.cursor.forget_later()
            self.parking.unparked.clear()

    def rewind(self, position: str) -> None:
        """Read on from `position`, so that entries that could not be parked are read again."""
        self.cursor.rewind(position)
        if position == "-":
            self.cursor.forget_later()
        self.parking.read_unparked_again()

    def measured(self, size: LaneSize) -> None:
        """Record what Redis answered about the lane."""
        self.parking.measured(size, is_final=self.cursor.passed_in_hand)
        self.turn.oldest_age = size.oldest_age or 0.0

    def all_judged(self) -> None:
        """No entry is left that a restored Redis brought back from before the ledger was pruned."""
        self.doubtful_until = None

    def start_epoch(self) -> None:
        """The lane is owned again: read what is not settled."""
        self.read_again()
        self.alike.look_for_leftovers()
        self.lost_epoch = 0

    def fenced(self) -> None:
        """Another processor owns the lane: trust nothing that was read."""
        self.owner = None
        self.forget()

    def session_lost(self) -> None:
        """The session with PostgreSQL ended, and with it the ownership."""
        if self.owner is not None:
            self.lost_epoch, self.owner = self.owner.epoch, None
        self.read_again()

    def check_again(self) -> None:
        """Have the lines of blocked keys rebuilt the next time that lanes are taken."""
        self.checked_on = 0

    def in_turn(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those parked entries in front of which nothing is left to be read in the stream.

        A failover brings back what was applied before they were parked, and it is read again.
        """
        if self.cursor.reached_end:
            return list(entries)
        if (page := self.cursor.page) is not None:
            return [e for e in entries if order(e.entry_id) < order(page.first)]
        at = self.cursor.position
        return [e for e in entries if at != "-" and order(e.entry_id) <= order(at)]
