"""Isolation of poison: finds which entries of a batch fail, and commits the others.

DESIGN. Isolation costs one round trip, whatever the number of poison entries (rule 16). The
function `processor.isolate` runs each group of entries as the quick way would. Where a group fails,
its entries run one by one, unprepared, each in a subtransaction of its own, and only that run
pronounces poison (rule 17). Entries that share a key with a failed one are held, so that order
stands. Where isolation cannot decide, each entry is applied alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from processor import crashpoint
from processor.apply import failure_reasons
from processor.apply.batch_errors import BatchErrors, verdict_on
from processor.apply.committer import Commit, Committer, has_own_limit, longest_limit
from processor.apply.outcome import Contended, Outcome
from processor.apply.verdict import Verdict
from processor.buffer import key_order
from processor.connections.sql_literals import quoted
from processor.errors import DatabaseError
from processor.ledger import lane_rows, outcomes
from processor.ledger.dead_letters import Reason
from processor.ledger.lane_rows import Ownership
from processor.sql.renderer import Renderer, Taken, Unrenderable, tables_of
from processor.telemetry import metrics
from processor.transaction.entry import Entry

#: Entries in a group: few enough that one poison entry makes few others run twice.
_GROUP = 16
#: How often an entry is tried alone while its tables change.
_MOST_TRIES = 6
#: Batches that are isolated from the start after one had poison.
_ISOLATED_AFTERWARDS = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch rendered for isolation: groups as in the quick way, and each operation as plain SQL.

    `plain` has the operations of each entry.
    """

    groups: list[str]
    plain: list[list[str]]


def parts(renderer: Renderer, taken: Sequence[Taken]) -> Parts | None:
    """Render a batch for isolation; None if a value does not fit its column."""
    groups = []
    for start in range(0, len(taken), _GROUP):
        text, unfit = renderer.batch(taken[start : start + _GROUP])
        if unfit:
            return None
        groups.append(text)
    return Parts(groups, [renderer.steps(one) for one in taken])


class Isolation:
    """Isolates the poison of batches, on one session."""

    def __init__(self, committer: Committer, errors: BatchErrors, limit: float) -> None:
        """`limit` is how long the server may take to isolate a batch, in seconds."""
        self._committer = committer
        self._errors = errors
        self._limit = limit
        #: How many batches are to be isolated from the start, because poison was found lately.
        self.expected = 0
        self._isolated = False

    def begin(self) -> None:
        """Get ready for the errors of a batch: it is isolated once."""
        self._isolated = False

    def apply(
        self, owner: Ownership, entries: Sequence[Entry], rendered: Parts, tables: frozenset[str],
        outcome: Outcome, meanwhile: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        """Commit the entries that can be committed; record the others as failed or held."""
        self.expected -= 1
        crashpoint.reach("isolate-before")
        outcome.commit = self._commit(owner, entries, rendered, tables, meanwhile)
        crashpoint.reach("isolate-after")
        failures = _failures(entries, outcome.commit)
        if failures:
            self.expected = _ISOLATED_AFTERWARDS
        for place, entry in enumerate(entries):
            if place not in failures:
                outcome.committed.append(entry)
            elif (reason := failures[place]) is None:
                outcome.held.append(entry)
            else:
                outcome.failed.append((entry, reason))

    def _commit(
        self, owner: Ownership, entries: Sequence[Entry], rendered: Parts, tables: frozenset[str],
        meanwhile: Callable[[], None] | None,
    ) -> Commit:  # fmt: skip
        prepared = self._committer.prepares
        pairs = key_order.behind(entries)
        body = "".join((
            f"SET LOCAL statement_timeout = {int(self._limit * 1000)};",
            lane_rows.fence(owner, len(entries), last=entries[-1].entry_id),
            outcomes.insert(owner, entries, prepared=prepared),
            "SELECT pg_catalog.set_config('processor.failures', processor.isolate_2(",
            f"'{owner.buffer}', {quoted(owner.lane)}, '{{{','.join(e.id for e in entries)}}}',",
            f"ARRAY[{','.join(map(quoted, rendered.groups))}],",
            f"ARRAY[{','.join(quoted(step) for steps in rendered.plain for step in steps)}],",
            f"'{{{','.join(map(str, accumulate(map(len, rendered.plain))))}}}',",
            f"'{{{','.join(str(later + 1) for later, _ in pairs)}}}',",
            f"'{{{','.join(str(earlier + 1) for _, earlier in pairs)}}}', {_GROUP})",
            "::pg_catalog.text, false);",
            outcomes.remove_failed_former(entries),
            # It also covers the failures: they were found with the tables as they are now.
            self._committer.proof(tables, prepared=prepared),
        ))  # fmt: skip
        return self._committer.commit(body, prepared=prepared, meanwhile=meanwhile)

    def find(
        self, owner: Ownership, entries: list[Entry], outcome: Outcome, error: DatabaseError
    ) -> list[Entry]:
        """Prepare the isolation of a batch that failed with `error`; return the entries to send.

        Where isolation cannot decide, the entries are applied one by one, and none are left.
        """
        self.expected = _ISOLATED_AFTERWARDS
        if error.sqlstate[:2] == "42":
            # A table or column may have changed since it was looked up.
            self._committer.forget_tables()
        if error.sqlstate == "57014" or self._isolated or has_own_limit(entries):
            # A time limit counts for one statement, and isolation is one statement (rule 18).
            self._committer.look_up_tables(tables_of(entries))
            self._one_by_one(owner, entries, outcome)
            return []
        metrics.count("isolated")
        self._isolated = True
        return entries

    def _one_by_one(self, owner: Ownership, entries: list[Entry], outcome: Outcome) -> None:
        held_keys: set[str] = set()
        for entry in entries:
            if entry.keys and not held_keys.isdisjoint(entry.keys):
                held_keys.update(entry.keys)
                outcome.held.append(entry)
                continue
            reason = self._alone(owner, entry, outcome)
            if reason is not None:
                held_keys.update(entry.keys)
                outcome.failed.append((entry, reason))

    def _alone(self, owner: Ownership, entry: Entry, outcome: Outcome) -> Reason | None:
        """Apply one entry, unprepared. Return why it failed, or None if its outcome is recorded."""
        tables = tables_of([entry])
        for _ in range(_MOST_TRIES):
            reason = self._alone_once(owner, entry, outcome)
            # What failed may only not fit the table as it was.
            if reason is None or not self._committer.refresh_tables(tables):
                return reason
        raise Contended("its tables change each time it is tried")

    def _alone_once(self, owner: Ownership, entry: Entry, outcome: Outcome) -> Reason | None:
        started = time.monotonic()
        try:
            body = (
                lane_rows.fence(owner, 1, last=entry.entry_id)
                + outcomes.insert(owner, [entry])
                + self._committer.renderer.plain(entry)
                + self._committer.proof(tables_of([entry]))
            )
        except Unrenderable as error:
            return failure_reasons.unfit(entry, error)
        try:
            outcome.commit = self._committer.commit(body, longest=longest_limit([entry]))
        except DatabaseError as error:
            if not error.in_transaction and not self._errors.look_up(
                owner, [entry], outcome
            ):
                return None
            verdict = verdict_on(self._committer, error, [entry], started)
            if verdict is not Verdict.POISON:
                rest = self._errors.rest(owner, [entry], outcome, error, started)
                if rest:
                    raise Contended("an entry is blocked even when applied alone") from None
                if rest is not None:
                    return None
            self._committer.roll_back()
            self._errors.prove_alive(owner, error)
            return failure_reasons.refused(
                entry, error.sqlstate, table=error.table, column=error.column,
                constraint=error.constraint, detail=error.detail,
            )  # fmt: skip
        outcome.committed.append(entry)
        return None


def _failures(entries: Sequence[Entry], commit: Commit) -> dict[int, Reason | None]:
    """Return, by place in the batch, why an entry failed; None if it is held behind one."""
    found = json.loads(commit.failures)
    return {f["at"]: None if f.get("held") else _reason(entries[f["at"]], f) for f in found}


def _reason(entry: Entry, failure: dict[str, Any]) -> Reason:
    names = {kind: failure.get(kind) or "" for kind in ("table", "column", "constraint", "detail")}
    return failure_reasons.refused(
        entry, failure["sqlstate"], operation=failure.get("step"), **names
    )
