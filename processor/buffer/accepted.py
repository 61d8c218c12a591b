"""Which pending writes were accepted: the proof of a record in the overlay is its entry (rule 105).

A producer writes the record of a pending write and its entry at once. So a record counts only if an
entry has its id and its operations: in the stream, among the delayed or the parked ones. When the
entry is settled, the owner of the lane writes the id into `:proven`, and the record under that id
in the overlay, which no other producer could replace, counts as well.

A record names its lane and, nearly, when it was accepted. Both are hints, which may be wrong. The
entries that are read on the way are kept for a while: they prove the records around.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec

from processor.buffer import delayed, parked, stream
from processor.buffer.entry_ids import order
from processor.buffer.lane import Lane
from processor.buffer.overlay import Overlay, Pending, record
from processor.buffer.registry import is_lane_name
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.transaction.documents import canonical
from processor.transaction.entry import UnknownVersion, Unreadable, decode
from processor.transaction.operations import VERSION, form_decoder

_PAGE = 200
#: Pages that are read where records say that their entries are, without finding one, and from the
#: head of a lane.
_NEAR, _ALL = 100, 100
#: Milliseconds by which the time in a record may be after that of its entry, and before it: a write
#: of many transactions takes a while.
_EARLIER, _LATER = 20, 2_000
#: Entries that are kept, and their bytes together.
_MOST, _MOST_BYTES = 20_000, 16 * 1_048_576
_LARGEST = 8_000
_OPERATIONS = b',"operations":'


class Proof(enum.Enum):
    """What is known of a record; TOO_MANY if there are too many entries to search."""

    ACCEPTED = enum.auto()
    NOT_IN_REDIS = enum.auto()
    TOO_MANY = enum.auto()


class _Identified(msgspec.Struct):
    id: str


_identified = msgspec.json.Decoder(_Identified)


class AcceptedEntries:
    """Searches for the entries of pending writes; used by all threads of a process."""

    def __init__(self, settings: Settings, keys: Overlay) -> None:
        self._keys = keys
        self._namespace = settings.namespace
        self._configured = [
            f"{name}:{number}" for name, queue in settings.queues.items()
            for number in range(queue.partitions)
        ]  # fmt: skip
        self._bodies: dict[str, bytes] = {}
        self._bytes = 0

    def has(self, transaction_id: str, text: bytes) -> bool:
        """Whether an entry that was read before proves this record, at a glance.

        In both the operations come last, so equal ends are equal operations: the last brace closes
        the object that they belong to.
        """
        body = self._bodies.get(transaction_id)
        start = text.find(_OPERATIONS)
        return body is not None and start > 0 and body.endswith(text[start:])

    def prove(self, redis: RedisConnection, records: Iterable[Pending]) -> dict[str, Proof]:
        """Return what is known of these records, by id. Raises RedisUnavailable and RedisRefused.

        One round trip if they are near each other; none if entries around them were read before.
        """
        search = _Search(records)
        for each in search.missing():
            search.compare(each.id, self._bodies.get(each.id, b""))
        if search.left:
            self._look(redis, search)
        complete = True
        by_lane: dict[Lane, list[Pending]] = {}
        for each in search.missing():
            for lane in self._lanes_of(each):
                by_lane.setdefault(lane, []).append(each)
        for lane, wanted in by_lane.items():
            self._follow_hints(redis, lane, search, sorted(wanted, key=_when))
            complete = self._read_all(redis, lane, search) and complete
        if search.left:
            # An entry may have been moved past the search: it moves in this order.
            self._look_by_id(search, checked(redis.calls(self._by_id(search))))
        absent = Proof.NOT_IN_REDIS if complete else Proof.TOO_MANY
        return search.found | dict.fromkeys(search.left, absent)

    def _lanes_of(self, pending: Pending) -> list[Lane]:
        names = [pending.lane] if is_lane_name(pending.lane) else self._configured
        return [Lane(self._namespace, name) for name in names]

    def _look(self, redis: RedisConnection, search: _Search) -> None:
        """Look where entries most likely are, in one round trip."""
        first = min(search.missing(), key=_when)
        lane = self._lanes_of(first)[0]
        due = [each for each in search.missing() if each.due is not None][:_PAGE]
        asked: list[Command] = [
            *(("ZRANGEBYSCORE", self._lanes_of(each)[0].scheduled, repr(each.due), repr(each.due),
               "LIMIT", 0, 9) for each in due),
            stream.read(lane, _start(first), _PAGE), *self._by_id(search),
        ]  # fmt: skip
        replies = checked(redis.read(asked))
        for members in replies[: len(due)]:
            self._keep((delayed.split(each)[1] for each in members), search)
        self._read(replies[len(due)], search)
        self._look_by_id(search, replies[len(due) + 1 :])

    def _by_id(self, search: _Search) -> list[Command]:
        """The commands whose replies `_look_by_id` takes."""
        search.asked = [*search.left]
        lanes = dict.fromkeys(lane for each in search.missing() for lane in self._lanes_of(each))
        return [
            *(("HMGET", lane.parked, *search.asked) for lane in lanes),
            ("HMGET", self._keys.proven, *search.asked),
            ("HMGET", self._keys.prefix, *search.asked),
        ]

    def _look_by_id(self, search: _Search, replies: Sequence[Sequence[bytes | None]]) -> None:
        *held, proven, shown = replies
        for records in held:
            heads = (parked.head(each) for each in records if each is not None)
            self._keep((head.body for head in heads if head is not None), search)
        for i, settled, whole in zip(search.asked, proven, shown, strict=True):
            if settled is not None and whole is not None and i in search.left:
                search.accept_same(i, record(whole))

    def _follow_hints(
        self, redis: RedisConnection, lane: Lane, search: _Search, wanted: Sequence[Pending]
    ) -> None:
        """Read on from where these records, oldest first, say that their entries are."""
        position, useless = "-", 0
        for each in wanted:
            passed = int(_when(each) * 1000) + _LATER
            while each.id in search.left and useless < _NEAR:
                start = _start(each)
                if start == "-" or (position != "-" and order(position) > order(start)):
                    start = position
                before = len(search.left)
                page = self._page(redis, lane, start, search)
                useless += len(search.left) == before
                if len(page) < _PAGE:
                    return
                position = page[-1][0].decode()
                if order(position)[0] > passed:
                    break

    def _read_all(self, redis: RedisConnection, lane: Lane, search: _Search) -> bool:
        """Read a lane from its head; return whether it was read to its end, or all was found."""
        position = "-"
        for _ in range(_ALL):
            if not search.left:
                return True
            page = self._page(redis, lane, position, search)
            if len(page) < _PAGE:
                return True
            position = page[-1][0].decode()
        return False

    def _page(
        self, redis: RedisConnection, lane: Lane, start: str, search: _Search
    ) -> Sequence[Sequence[bytes]]:
        (page,) = checked(redis.read([stream.read(lane, start, _PAGE)]))
        self._read(page, search)
        return page  # type: ignore[no-any-return]

    def _read(self, reply: Sequence[Sequence[bytes]], search: _Search) -> None:
        self._keep((e[2] for e in stream.entries(reply) if e[2] is not None), search)

    def _keep(self, bodies: Iterable[bytes], search: _Search) -> None:
        """Keep these bodies, and compare them with the records that are left."""
        for body in bodies:
            try:
                i = _identified.decode(body).id
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
            if i in search.left:
                search.compare(i, body)
            elif len(body) <= _LARGEST:
                self._bytes += len(body)
                if len(self._bodies) >= _MOST or self._bytes > _MOST_BYTES:
                    self._bodies.clear()
                    self._bytes = len(body)
                self._bodies[i] = body


class _Search:
    """The records that a search is for, and what it found."""

    def __init__(self, records: Iterable[Pending]) -> None:
        self.left = {each.id: each for each in records}
        self.found: dict[str, Proof] = {}
        self.asked: list[str] = []

    def missing(self) -> list[Pending]:
        return [*self.left.values()]

    def compare(self, i: str, body: bytes) -> None:
        """Accept a record if this is the body of its entry."""
        if body and _shows(self.left[i], body):
            self._accept(i)

    def accept_same(self, i: str, other: Pending | None) -> None:
        """Accept a record if its operations are those of another record, which was accepted."""
        if other is not None and other.operations == self.left[i].operations:
            self._accept(i)

    def _accept(self, i: str) -> None:
        del self.left[i]
        self.found[i] = Proof.ACCEPTED


def _shows(pending: Pending, body: bytes) -> bool:
    """Whether the operations of a record are among those of an entry, in order."""
    try:
        if form_decoder.decode(body).operations == canonical(pending.operations):
            return True
        rest = iter(decode("0-0", VERSION, body).operations)
    except (Unreadable, UnknownVersion, msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return all(any(each == other for other in rest) for each in pending.operations)


def _when(pending: Pending) -> float:
    return pending.at if pending.due is None else pending.due


def _start(pending: Pending) -> str:
    milliseconds = int(_when(pending) * 1000) - _EARLIER
    return f"{milliseconds}-0" if 0 < milliseconds < 1 << 60 else "-"

