"""Which entries of a page may run now, and which have or get another place.

Hands the drain what may run, and an `Outcome` with the rest: what waits behind somebody with the
same key, and copies of what has its place already.
"""

from __future__ import annotations

from processor.apply.outcome import Outcome
from processor.buffer import delayed, parked
from processor.buffer.entry_ids import sortable
from processor.buffer.key_order import split
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.settle import DOUBTFUL, Settler
from processor.drain.settle_replicated import ReplicatedSettling
from processor.ledger import outcomes
from processor.ownership.owned_lane import OwnedLane, Page
from processor.transaction.entry import Entry


class Admission:
    """Looks at pages for one processor."""

    def __init__(
        self, database: PostgresSession, redis: RedisConnection, settling: Settler,
        withholding: ReplicatedSettling,
    ) -> None:  # fmt: skip
        self._database = database
        self._redis = redis
        self._settling = settling
        self._withholding = withholding

    def admit(self, lane: OwnedLane, page: Page) -> tuple[list[Entry], Outcome]:
        """Part a page into what may run and what waits behind somebody with the same key."""
        entries = [e for e in page.entries if e.id not in lane.parking.unparked]
        if doubtful := self._doubtful(lane, entries):
            self._settling.bury_doubtful(lane, doubtful)
            self._settling.let_go(lane, doubtful, page.generation)
            entries = [e for e in entries if e not in doubtful]
        parked_copies = self._parked_copies(lane, entries)
        if parked_copies.placed or parked_copies.clashing:
            met = {e.entry_id for e in (*parked_copies.placed, *parked_copies.clashing)}
            entries = [e for e in entries if e.entry_id not in met]
        if not any(e.keys for e in entries):
            return entries, parked_copies
        first = {}
        if lane.parking.has_lines:
            keys = (key for e in entries for key in e.keys)
            first = parked.first_places(self._redis, lane.lane, keys)
        stuck = lane.parking.unparked_keys

        def blocked(entry: Entry, key: str) -> bool:
            head = first.get(key)
            # Whoever stands first came later: then it waits for this entry, which stayed in the
            # stream while Redis was full.
            return key in stuck or (
                head is not None
                and (head.id == entry.id or head.order < sortable(entry.entry_id))
            )

        free, held = split(entries, blocked)
        aside = self._copies(lane, entries, held) if held else Outcome()
        if aside.placed or aside.clashing:
            # Nobody waits behind a copy.
            copies = {e.entry_id for e in (*aside.placed, *aside.clashing)}
            free, held = split([e for e in entries if e.entry_id not in copies], blocked)
        aside.held = held
        aside.placed += parked_copies.placed
        aside.clashing += parked_copies.clashing
        return free, aside

    def _parked_copies(self, lane: OwnedLane, entries: list[Entry]) -> Outcome:
        """Entries without a key that wait for their retry, met again where their copies stay.

        Tried from here they would be tried too early, and with none of their attempts counted.
        """
        found = Outcome()
        if self._withholding.applies and lane.parking.has_records:
            ids = [e.id for e in entries if not e.keys]
            places = parked.hashes(self._redis, lane.lane, ids)
            for entry in entries:
                if not entry.keys and entry.id in places:
                    same = places[entry.id] == entry.hash
                    (found.placed if same else found.clashing).append(entry)
        return found

    def _copies(self, lane: OwnedLane, entries: list[Entry], held: list[Entry]) -> Outcome:
        """Of those that would wait, the copies of what is parked or decided, or of one before them.

        They have their place already. In line once more a copy would stand for ever, with nobody to
        release it.
        """
        ids = [e.id for e in held]
        places = {i: known.hash for i, known in outcomes.find(self._database, ids).items()}
        places |= parked.hashes(self._redis, lane.lane, ids)
        waits = {e.entry_id for e in held}
        found = Outcome()
        for entry in entries:
            first = places.get(entry.id)
            places.setdefault(entry.id, entry.hash)
            if first is not None and entry.entry_id in waits:
                (found.placed if first == entry.hash else found.clashing).append(entry)
        return found

    def ended(self, lane: OwnedLane, entries: list[Entry]) -> Outcome | None:
        """The end of parked entries of which nobody knows whether they were applied, if any."""
        doubtful = self._doubtful(lane, entries)
        return Outcome(failed=[(e, DOUBTFUL) for e in doubtful]) if doubtful else None

    def judge_due(self, lane: OwnedLane, now: float) -> None:
        """Before a move at `now`: delayed work in doubt is dead by the time its copy is met.

        In the stream it gets a new entry id, which does not tell how old it is.
        """
        if lane.doubtful_until is not None:
            entries = delayed.suspects(self._redis, lane.lane, lane.doubtful_until, now)
            self._settling.bury_doubtful(lane, self._doubtful(lane, entries))

    def _doubtful(self, lane: OwnedLane, entries: list[Entry]) -> list[Entry]:
        """After Redis went back: what is older than the ledger's memory may have been applied.

        Such an entry becomes a dead letter for an operator to judge, not an effect (rule 23).
        """
        mark = lane.doubtful_until
        if mark is None:
            return []
        old = [e for e in entries if int(e.entry_id.partition("-")[0]) <= mark]
        known = outcomes.find(self._database, [e.id for e in old])
        return [e for e in old if e.id not in known]
