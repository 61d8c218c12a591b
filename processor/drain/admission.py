"""Which entries of a page may run now, and which wait or have a place already.

Hands the pass the entries that may run, and an `Outcome` with the others: entries that wait behind
an earlier one with the same key, and copies of entries that are parked or decided.
"""

from __future__ import annotations

from collections.abc import Callable

from processor.apply.outcome import Outcome
from processor.buffer import delayed, parked, waiting_lines
from processor.buffer.entry_ids import order, sortable
from processor.buffer.key_order import split
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.drain.settle import Settler
from processor.drain.settle_plan import POSSIBLY_APPLIED
from processor.drain.settle_replicated import ReplicatedSettling
from processor.ledger import dead_letters, outcomes
from processor.ownership.owned_lane import OwnedLane, Page
from processor.transaction.entry import Entry


class Admission:
    """Admits the entries of one processor's lanes."""

    def __init__(
        self, database: PostgresSession, redis: RedisConnection, settler: Settler,
        replicated: ReplicatedSettling,
    ) -> None:  # fmt: skip
        self._database = database
        self._redis = redis
        self._settler = settler
        self._replicated = replicated

    def admit(self, lane: OwnedLane, page: Page) -> tuple[list[Entry], Outcome]:
        """Split a page into the entries that may run, and an outcome with the others."""
        entries = [e for e in page.entries if e.id not in lane.parking.unparked]
        if doubtful := self._possibly_applied(lane, entries):
            self._settler.file_possibly_applied(lane, doubtful)
            self._settler.remove_dead(lane, doubtful, page.generation)
            entries = [e for e in entries if e not in doubtful]
        parked_copies = self._parked_copies(lane, entries)
        if parked_copies.placed or parked_copies.clashing:
            apart = {e.entry_id for e in (*parked_copies.placed, *parked_copies.clashing)}
            entries = [e for e in entries if e.entry_id not in apart]
        free, outcome = entries, Outcome()
        parking = lane.parking
        lines = parking.has_lines or parking.lines_may_come
        blocks = lines or parking.unparked or parking.lacks_dead_letters
        if blocks and any(e.keys for e in entries):
            free, outcome = self._free(lane, entries)
        outcome.placed += parked_copies.placed
        outcome.clashing += parked_copies.clashing
        if lane.alike.pauses:
            free, outcome.paused, behind = lane.alike.split(free)
            outcome.held += behind
        return free, outcome

    def _free(self, lane: OwnedLane, entries: list[Entry]) -> tuple[list[Entry], Outcome]:
        """Split entries by whether one of their keys is blocked."""
        first = {}
        if lane.parking.has_lines or lane.parking.lines_may_come:
            keys = (key for e in entries for key in e.keys)
            first = waiting_lines.first_places(self._redis, lane.lane, keys)
            if first:
                lane.parking.hold_line()
        unparked_keys = lane.parking.unparked_keys
        former: set[str] = set()
        holds = self._dead_letters_hold(lane, entries)

        def blocked(entry: Entry, key: str) -> bool:
            if entry.entry_id in former:
                return False
            head = first.get(key)
            # A first in line that came later does not block: it waits for this entry, which stayed
            # in the stream while Redis was full.
            return key in unparked_keys or holds(entry, key) or (
                head is not None
                and (head.id == entry.id or head.order < sortable(entry.entry_id))
            )

        free, held = split(entries, blocked)
        outcome = Outcome()
        if held:
            outcome, former = self._copies(lane, entries, held)
        if outcome.placed or outcome.clashing or former:
            # Duplicates block nobody.
            copies = {e.entry_id for e in (*outcome.placed, *outcome.clashing)}
            free, held = split([e for e in entries if e.entry_id not in copies], blocked)
        outcome.held = held
        return free, outcome

    def without_held(self, lane: OwnedLane, entries: list[Entry]) -> list[Entry]:
        """Parked entries that no dead letter holds whose place in the lines is missing."""
        free, _ = split(entries, self._dead_letters_hold(lane, entries))
        return free

    def _dead_letters_hold(
        self, lane: OwnedLane, entries: list[Entry]
    ) -> Callable[[Entry, str], bool]:
        """Whether an entry waits behind a dead letter, asked of the ledger while lines lack some.

        What was decided is no longer a dead letter, and what comes later does not hold the key.
        """
        holders: dict[str, tuple[int, int]] = {}
        keys = list(dict.fromkeys(key for entry in entries for key in entry.keys))
        if keys and lane.parking.lacks_dead_letters:
            assert lane.owner is not None
            for key, entry_id in dead_letters.holding(self._database, lane.owner, keys):
                holders[key] = min(order(entry_id), holders.get(key, order(entry_id)))
        return lambda entry, key: key in holders and holders[key] < order(entry.entry_id)

    def _parked_copies(self, lane: OwnedLane, entries: list[Entry]) -> Outcome:
        """Entries without a key that were parked for a retry, read again where their copies stay.

        Applied from here they would run too early, and with none of their attempts counted.
        """
        found = Outcome()
        if self._replicated.applies and lane.parking.has_records:
            ids = [e.id for e in entries if not e.keys]
            hashes = parked.payload_hashes(self._redis, lane.lane, ids)
            for entry in entries:
                if not entry.keys and entry.id in hashes:
                    same = hashes[entry.id] == entry.hash
                    (found.placed if same else found.clashing).append(entry)
        return found

    def _copies(
        self, lane: OwnedLane, entries: list[Entry], held: list[Entry]
    ) -> tuple[Outcome, set[str]]:
        """Those held entries that copy a parked or decided entry, or an earlier one of the page.

        They have their place already. A copy that was put in line again would stay there for good,
        since nothing would release it. An entry whose own record is found is no copy: it is put in
        line again, since a crash may have removed its place before its record (rule 28). The set
        has the entry ids of those that are decided under their former ids: they need no turn, but
        a row in the ledger (rule 96).
        """
        assert lane.owner is not None
        ids = [e.id for e in held]
        known = outcomes.find_entries(self._database, lane.owner, held)
        former = {e.entry_id for e in held if e.id in known and known[e.id].former}
        hashes = {i: recorded.hash for i, recorded in known.items() if not recorded.former}
        records = parked.recorded(self._redis, lane.lane, ids)
        hashes |= {i: entry.hash for i, entry in records.items()}
        own = {entry.entry_id for i, entry in records.items() if i not in known}
        waiting = {e.entry_id for e in held} - own
        found = Outcome()
        for entry in entries:
            first = hashes.get(entry.id)
            hashes.setdefault(entry.id, entry.hash)
            if first is not None and entry.entry_id in waiting:
                (found.placed if first == entry.hash else found.clashing).append(entry)
        return found, former

    def dead_before_retry(self, lane: OwnedLane, entries: list[Entry]) -> Outcome | None:
        """The outcome of parked entries that may have been applied before, None without such."""
        doubtful = self._possibly_applied(lane, entries)
        return Outcome(failed=[(e, POSSIBLY_APPLIED) for e in doubtful]) if doubtful else None

    def judge_delayed(self, lane: OwnedLane, now: float) -> None:
        """Before delayed entries due at `now` (Unix seconds) are moved, judge the doubtful ones.

        In the stream they get a new entry id, which does not show how old they are; the ledger then
        knows them as dead.
        """
        if lane.doubtful_until is not None:
            entries = delayed.suspects(self._redis, lane.lane, lane.doubtful_until, now)
            self._settler.file_possibly_applied(lane, self._possibly_applied(lane, entries))

    def _possibly_applied(self, lane: OwnedLane, entries: list[Entry]) -> list[Entry]:
        """After Redis went back: entries that were accepted before the ledger was pruned.

        Such an entry becomes a dead letter for an operator to judge, not an effect (rule 23).
        """
        limit = lane.doubtful_until
        if limit is None:
            return []
        old = [e for e in entries if int(e.entry_id.partition("-")[0]) <= limit]
        known = outcomes.find(self._database, [e.id for e in old])
        return [e for e in old if e.id not in known]
