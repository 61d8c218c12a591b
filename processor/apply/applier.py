"""Applies a batch: renders it as one string, sends it, and finds out what failed if that fails.

Hands the drain an `Outcome`: which entries are committed, which the ledger already had, which
failed and why, and which are held behind those. Raises what concerns the whole batch: Fenced,
Contended, and the Unavailable of the connection.

DESIGN. The quick way is a string of EXECUTEs behind the fence and the ledger rows. An error in it
names no entry, so the batch is sent once more through `poison`: one more round trip, whatever the
number of poison entries. While poison keeps coming, batches go that way from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.apply import failure_reasons
from processor.apply.batch_errors import BatchErrors
from processor.apply.committer import Committer, has_own_limit, longest_limit
from processor.apply.outcome import Contended, Outcome
from processor.apply.poison import Isolation, Parts, parts
from processor.config.settings import Settings
from processor.errors import DatabaseError
from processor.ledger import lane_rows, outcomes
from processor.ledger.dead_letters import Reason
from processor.ledger.lane_rows import Ownership
from processor.sql.renderer import tables_of, tables_taken
from processor.transaction.entry import Entry

#: How often a batch is sent before the lane is paused as contended.
_MOST_TRIES = 6


@dataclass(slots=True)
class BatchText:
    """Entries as text, or as parts for isolation; valid while `version` is the committer's.

    `tables` are those that the text writes to.

    `unfit` are the entries that cannot be rendered, by id: a value does not fit its column, or a
    table does not exist. The applier judges them, because the catalog may be older than the table.
    """

    entries: list[Entry]
    text: str
    unfit: dict[str, Reason]
    version: tuple[int, int]
    parts: Parts | None = None
    tables: frozenset[str] = frozenset()


class Applier:
    """Applies batches on one session."""

    def __init__(self, committer: Committer, settings: Settings) -> None:
        self._committer = committer
        self._errors = BatchErrors(committer, settings)
        # Below the deadline of the call, so that the server gives up first.
        limit = settings.database.call_timeout * 0.9
        self._isolation = Isolation(committer, self._errors, limit)

    def apply(
        self, owner: Ownership, entries: Sequence[Entry], prerendered: BatchText | None = None,
        meanwhile: Callable[[], None] | None = None, *, patient: bool = True,
    ) -> Outcome:  # fmt: skip
        """Apply entries of one lane, in order. Raises as the module says.

        `prerendered` is what `prerender` returned for the same entries. `meanwhile` is called once,
        while the server works. Unless `patient`, the first lock in the way raises Contended.
        """
        outcome = Outcome()
        self._committer.begin()
        first, *later = _runs(_without_copies(entries, outcome))
        self._apply(owner, first, prerendered, meanwhile, outcome, patient=patient)
        for run in later:
            pending = outcome.without_followers(run, (), outcome.held_keys)
            self._apply(owner, pending, None, None, outcome, patient=patient)
        if outcome.former:
            outcome.commit = self._committer.commit(
                lane_rows.fence(owner, 0) + outcomes.insert_known(outcome.former)
            )
        if outcome.known and outcome.commit is None:
            outcome.commit = self._committer.upper_bound(owner)
        return outcome

    def _apply(
        self, owner: Ownership, pending: list[Entry], prerendered: BatchText | None,
        meanwhile: Callable[[], None] | None, outcome: Outcome, *, patient: bool,
    ) -> None:  # fmt: skip
        tries = 0
        while pending:
            batch = self._rendered(owner, pending, prerendered, outcome)
            pending = batch.entries
            crashpoint.reach("batch-rendered")
            if not pending:
                break
            tries += 1
            if tries > _MOST_TRIES:
                raise Contended(f"sent {_MOST_TRIES} times without success")
            started = time.monotonic()
            try:
                self._send(owner, batch, outcome, meanwhile)
                break
            except DatabaseError as error:
                if tries == 1:
                    # The first error of this batch.
                    self._errors.begin()
                    self._isolation.begin()
                rest = self._errors.rest(
                    owner, pending, outcome, error, started, patient=patient)  # fmt: skip
                if rest is None:
                    rest = self._isolation.find(owner, pending, outcome, error)
                pending = rest
            prerendered = meanwhile = None

    def prerender(self, entries: Sequence[Entry]) -> BatchText | None:
        """Render entries while the server works on others.

        Return None if a table has to be looked up first, or if an entry cannot be rendered.
        """
        try:
            batch = self._render(_without_copies(entries, Outcome()))
        except KeyError:
            return None
        return None if batch.unfit else batch

    def _rendered(
        self, owner: Ownership, entries: list[Entry], prerendered: BatchText | None,
        outcome: Outcome,
    ) -> BatchText:  # fmt: skip
        if (
            prerendered is not None
            and prerendered.version == self._committer.text_version
            and prerendered.entries == entries
        ):
            return prerendered
        try:
            batch = self._render(entries)
        except KeyError:
            self._committer.look_up_tables(tables_of(entries))
            batch = self._render(entries)
        # The catalog may be older than the table: compare them before anything is pronounced.
        if batch.unfit and self._committer.refresh_tables(tables_of(entries)):
            batch = self._render(entries)
        if batch.unfit:
            # An entry that was committed before its table changed has not failed: ask the ledger.
            entries = self._errors.look_up(owner, entries, outcome)
            outcome.failed += [(e, batch.unfit[e.id]) for e in entries if e.id in batch.unfit]
            batch = self._render(outcome.without_followers(entries, batch.unfit))
        return batch

    def _render(self, entries: list[Entry]) -> BatchText:
        """Render entries. Raises KeyError if a table has not been looked up."""
        renderer = self._committer.renderer
        taken, unfit = renderer.take_all(entries)
        version = self._committer.text_version
        if self._isolation.expected > 0 and not unfit and not has_own_limit(entries):
            rendered = parts(renderer, taken)
            if rendered is not None:
                return BatchText(entries, "", {}, version, rendered, tables_taken(taken))
        text, refused = renderer.batch(taken)
        unfit |= refused
        reasons = {
            entry.id: failure_reasons.unfit(entry, unfit[entry.id])
            for entry in entries if entry.id in unfit
        } if unfit else {}  # fmt: skip
        return BatchText(entries, text, reasons, version, tables=tables_taken(taken))

    def _send(
        self,
        owner: Ownership,
        batch: BatchText,
        outcome: Outcome,
        meanwhile: Callable[[], None] | None,
    ) -> None:
        entries = batch.entries
        if batch.parts is not None:
            self._isolation.apply(owner, entries, batch.parts, batch.tables, outcome, meanwhile)
            return
        prepared = self._committer.prepares
        body = (
            lane_rows.fence(owner, len(entries), last=entries[-1].entry_id)
            + outcomes.insert(owner, entries, prepared=prepared)
            + batch.text
            + self._committer.proof(batch.tables, prepared=prepared)
        )
        outcome.commit = self._committer.commit(
            body, prepared=prepared, longest=longest_limit(entries), meanwhile=meanwhile
        )
        outcome.committed += entries


def _without_copies(entries: Sequence[Entry], outcome: Outcome) -> list[Entry]:
    """Return the first entry of each id; record copies, and other payloads as clashing."""
    # A lost XADD reply puts one id into the stream twice (rule 14).
    if len({entry.id for entry in entries}) == len(entries):
        return list(entries)
    first: dict[str, Entry] = {}
    for entry in entries:
        same = first.setdefault(entry.id, entry)
        if same is entry:
            continue
        if same.hash == entry.hash:
            outcome.copies.setdefault(same.entry_id, []).append(entry.entry_id)
        else:
            outcome.clashing.append(entry)
    return list(first.values())


def _runs(entries: list[Entry]) -> list[list[Entry]]:
    """Split entries so that no run has one key under two ids (rule 96).

    The ledger knows the first one when the second one is sent; one commit cannot have both.
    """
    if not any(entry.former for entry in entries):
        return [entries]
    runs: list[list[Entry]] = [[]]
    ids: set[str] = set()
    for entry in entries:
        own = {entry.id, entry.former or entry.id}
        if not ids.isdisjoint(own):
            runs.append([])
            ids.clear()
        ids |= own
        runs[-1].append(entry)
    return runs
