"""Commits dead letters, and carries out what operators request for them (rule 15).

A dead letter and its row in the ledger are one commit. Hands the drain what was decided, so that it
releases keys and settles entries.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from processor import crashpoint
from processor.apply import failure_reasons
from processor.apply.batch_errors import verdict_on
from processor.apply.committer import Commit, Committer, longest_limit
from processor.apply.verdict import Verdict
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import dead_letters, lane_rows, outcomes
from processor.ledger.dead_letters import DeadLetter, Reason
from processor.ledger.lane_rows import Ownership
from processor.sql.renderer import Unrenderable, tables_of
from processor.telemetry import metrics
from processor.transaction.entry import (
    Entry,
    UnknownVersion,
    Unreadable,
    decode,
    former_id_in,
)

log = logging.getLogger("processor.apply")

#: A request gives up after it waited for a lock for so long, in milliseconds; it is tried again.
_LOCK_WAIT = 100
#: Dead letters in one commit; each carries its body as hex, which is twice its size.
_IN_ONE_COMMIT = 50
_CLASSES = metrics.DECLARED["dead"].known
#: The class of SQLSTATEs of values that PostgreSQL does not take.
_DATA = "22"


@dataclass(frozen=True, slots=True)
class Death:
    """A transaction that becomes a dead letter; `clashing` if its id belongs to another payload."""

    entry: Entry
    reason: Reason
    attempts: int
    clashing: bool = False


class DeadLetterWriter:
    """Writes and resolves dead letters on one session."""

    def __init__(self, committer: Committer, *, hold: bool) -> None:
        self._committer = committer
        self._hold = hold

    def holds(self, death: Death) -> bool:
        """Return whether this dead letter holds its keys (rule 27)."""
        return self._hold and bool(death.entry.keys) and not death.clashing

    def write(self, owner: Ownership, deaths: Sequence[Death]) -> None:
        """Commit dead letters with their outcome. Raises what `Committer.commit` raises."""
        for start in range(0, len(deaths), _IN_ONE_COMMIT):
            self._write(owner, deaths[start : start + _IN_ONE_COMMIT])
        if deaths:
            _log(owner, deaths)

    def _write(self, owner: Ownership, deaths: Sequence[Death]) -> None:
        crashpoint.reach("dead-before")
        self._committer.begin()
        self._committer.roll_back()
        try:
            self._committer.commit(self._text(owner, deaths, self._committer.session.encoding))
        except DatabaseError as error:
            self._committer.roll_back()
            if error.sqlstate[:2] != _DATA:
                raise
            # A text that this database refuses for a reason of its own: ASCII fits any database.
            self._committer.commit(self._text(owner, deaths, "ASCII"))
        for death in deaths:
            found = death.reason.sqlstate[:2]
            metrics.count("dead", sqlstate_class=found if found in _CLASSES else "other")
        crashpoint.reach("dead-after")

    def _text(self, owner: Ownership, deaths: Sequence[Death], encoding: str) -> str:
        # The ledger has the other payload's outcome for a clashing id already.
        recorded = [d.entry for d in deaths if not d.clashing]
        body = lane_rows.fence(owner, 0, len(deaths))
        if recorded:
            body += outcomes.insert_dead(owner, recorded)
        for death in deaths:
            body += dead_letters.insert(
                owner, death.entry, death.reason, attempts=death.attempts,
                holds=self.holds(death), clashing=death.clashing, encoding=encoding,
            )  # fmt: skip
        return body

    def carry_out(self, owner: Ownership, letter: DeadLetter) -> Commit | None:
        """Carry out the request on a dead letter; return the commit, or None if it stays dead.

        Raises DatabaseError for a failure that is not poison, and DatabaseUnavailable.
        """
        self._committer.begin()
        recorded = outcomes.find(self._committer.session, [letter.id]).get(letter.id)
        own = recorded is not None and (recorded.outcome, recorded.hash) == ("dead", letter.hash)
        former = former_id_in(letter.body) if own else None
        if letter.request == "discard":
            return self._discard(owner, letter, former, own=own)
        if not own:
            self.reject(
                owner, letter, Reason("its id has another outcome: submit it under a new id")
            )
            return None
        twin = former and outcomes.find_former(self._committer.session, owner, [former]).get(former)
        if twin:
            self.reject(owner, letter, Reason(
                f"release 0.1 recorded its idempotency key under the id {former}, which is"
                f" {twin.outcome}: discard this one"
            ))  # fmt: skip
            return None
        return self._retry(owner, letter, former)

    def _discard(
        self, owner: Ownership, letter: DeadLetter, former: str | None, *, own: bool
    ) -> Commit:
        body = lane_rows.fence(owner, 0)
        if own:
            body += outcomes.resolve(owner, letter.id, letter.hash, "discarded", letter.hash)
        if former is not None:
            body += outcomes.insert_discarded_former(
                owner, former, letter.hash, letter.entry_id
            )
        return self._decide(owner, letter, body + dead_letters.resolve(letter, "discarded"))

    def _retry(
        self, owner: Ownership, letter: DeadLetter, former: str | None
    ) -> Commit | None:
        try:
            entry = decode(
                letter.entry_id, str(letter.version).encode(), letter.edited or letter.body
            )
        except UnknownVersion as error:
            text = f"written by a later release (envelope version {error}): upgrade the processor"
            self.reject(owner, letter, Reason(text))
            return None
        except Unreadable as error:
            self.reject(owner, letter, Reason(f"unreadable: {error}"))
            return None
        # An edited body has no key.
        entry = structs.replace(entry, former=former)
        tables = tables_of([entry])
        self._committer.look_up_tables(tables)
        commit, reason = self._apply(owner, letter, entry)
        if reason is not None and self._committer.refresh_tables(tables):
            # It may only not fit a table as it was looked up before.
            commit, reason = self._apply(owner, letter, entry)
        if reason is not None:
            self.reject(owner, letter, reason)
        return commit

    def _apply(
        self, owner: Ownership, letter: DeadLetter, entry: Entry
    ) -> tuple[Commit | None, Reason | None]:
        """Apply the transaction of a dead letter; return the commit, or why it failed."""
        try:
            effect = self._committer.renderer.plain(entry)
        except Unrenderable as error:
            return None, failure_reasons.unfit(entry, error)
        started = time.monotonic()
        try:
            return self._decide(
                owner, letter,
                f"SET LOCAL lock_timeout = {_LOCK_WAIT};"
                + lane_rows.fence(owner, 1, last=None)
                + outcomes.resolve(owner, letter.id, letter.hash, "applied", entry.hash)
                + outcomes.insert_former(owner, [entry])
                + dead_letters.resolve(letter, "applied")
                + effect
                + self._committer.proof(tables_of([entry])),
                longest_limit([entry]),
            ), None  # fmt: skip
        except DatabaseError as error:
            verdict = verdict_on(self._committer, error, [entry], started)
            if verdict is Verdict.OUTAGE:
                raise DatabaseUnavailable(f"PostgreSQL rejects work: {error}") from None
            if verdict is not Verdict.POISON:
                raise
            return None, failure_reasons.refused(
                entry, error.sqlstate, table=error.table, column=error.column,
                constraint=error.constraint, detail=error.detail,
            )  # fmt: skip

    def _decide(
        self, owner: Ownership, letter: DeadLetter, body: str, longest: float = 0.0
    ) -> Commit:
        try:
            return self._commit(body, longest)
        except DatabaseError as error:
            # Idle after an error: it may have been committed, whatever the SQLSTATE (rule 13).
            if error.in_transaction or not dead_letters.is_decided(self._committer.session, letter):
                raise
            return self._committer.upper_bound(owner)

    def _commit(self, body: str, longest: float = 0.0) -> Commit:
        try:
            return self._committer.commit(body, longest=longest)
        except DatabaseError:
            # The next call must not find the session in the failed transaction.
            self._committer.roll_back()
            raise

    def reject(self, owner: Ownership, letter: DeadLetter, reason: Reason) -> None:
        """Record that a request could not be carried out: the dead letter stays, with `reason`."""
        encoding = self._committer.session.encoding
        self._commit(
            lane_rows.fence(owner, 0) + dead_letters.failed_again(letter, reason, encoding)
        )
        metrics.count("retried")


def _log(owner: Ownership, deaths: Sequence[Death]) -> None:
    """Log one line for all of them, so that many failures do not flood the log."""
    first = deaths[0]
    # Without a SQLSTATE, what follows a colon can contain a part of the entry.
    why = first.reason.text if first.reason.sqlstate else first.reason.text.partition(":")[0]
    log.warning("lane %s: %d became dead letters, the first is %s (%s): see `processor dead list`",
                owner.lane, len(deaths), first.entry.id, why)
