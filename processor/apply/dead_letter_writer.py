"""Commit dead letters, and carry out what operators ask of them (rule 15).

A dead letter and the ledger's word for it are one commit. Hands the drain what was decided, so that
keys are released and entries settled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.apply.committer import Commit, Committer, prolonged
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import dead_letters, lane_rows, outcomes
from processor.ledger.dead_letters import DeadLetter, Reason
from processor.ledger.lane_rows import Ownership
from processor.sql.renderer import Unrenderable, tables
from processor.telemetry import metrics
from processor.transaction.entry import Entry, Unreadable, decode

log = logging.getLogger("processor.apply")

#: Dead letters committed at once; each carries its body twice over in hex.
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Death:
    """A transaction that goes to the dead letters; `clashing` if its id has an outcome already."""

    entry: Entry
    reason: Reason
    attempts: int
    clashing: bool = False


class DeadLetterWriter:
    """Writes and resolves dead letters on one session."""

    def __init__(self, session: Committer, *, hold: bool) -> None:
        self._session = session
        self._hold = hold

    def holds(self, death: Death) -> bool:
        """Whether this dead letter holds its keys (rule 27)."""
        return self._hold and bool(death.entry.keys) and not death.clashing

    def bury(self, owner: Ownership, deaths: Sequence[Death]) -> None:
        """Commit dead letters and their outcome. Raises what the session raises."""
        for start in range(0, len(deaths), _AT_ONCE):
            self._bury(owner, deaths[start : start + _AT_ONCE])
        if deaths:
            _tell(owner, deaths)

    def _bury(self, owner: Ownership, deaths: Sequence[Death]) -> None:
        crashpoint.reach("dead-before")
        self._session.begin()
        self._session.settle_down()
        mortal = [d.entry for d in deaths if not d.clashing]
        body = lane_rows.fence(owner, 0, len(deaths))
        if mortal:
            body += outcomes.insert_dead(owner, mortal)
        for death in deaths:
            body += dead_letters.insert(
                owner, death.entry, death.reason, attempts=death.attempts,
                holds=self.holds(death), clashing=death.clashing,
            )  # fmt: skip
        self._session.commit(body)
        metrics.count("dead", len(deaths))
        crashpoint.reach("dead-after")

    def fulfil(self, owner: Ownership, letter: DeadLetter) -> Commit | None:
        """Carry out the request on a dead letter. The commit if it is resolved, None if it stays.

        Raises what the session raises, and DatabaseError for anything but poison.
        """
        self._session.begin()
        known = outcomes.find(self._session.database, [letter.id]).get(letter.id)
        own = known is not None and (known.outcome, known.hash) == ("dead", letter.hash)
        if letter.request == "discard":
            return self._decide(
                owner, letter,
                lane_rows.fence(owner, 0)
                + (outcomes.resolve(owner, letter.id, letter.hash, "discarded", letter.hash)
                   if own else "")
                + dead_letters.resolved(letter, "discarded"),
            )  # fmt: skip
        if not own:
            self.fail(owner, letter, Reason("its id has another outcome: submit it under a new id"))
            return None
        try:
            entry = _revived(letter)
            self._session.know(tables(entry), anew=True)
            effect = self._session.renderer.plain(entry)
        except Unreadable as error:
            self.fail(owner, letter, Reason(f"unreadable: {error}"))
            return None
        except Unrenderable as error:
            self.fail(owner, letter, Reason(str(error), error.sqlstate))
            return None
        return self._apply(owner, letter, entry, effect)

    def _apply(
        self, owner: Ownership, letter: DeadLetter, entry: Entry, effect: str
    ) -> Commit | None:
        started = time.monotonic()
        try:
            return self._decide(
                owner, letter,
                lane_rows.fence(owner, 1, last=None)
                + outcomes.resolve(owner, letter.id, letter.hash, "applied", entry.hash)
                + dead_letters.resolved(letter, "applied")
                + effect,
                prolonged([entry]),
            )  # fmt: skip
        except DatabaseError as error:
            over = time.monotonic() - started >= self._session.least_limit([entry])
            verdict = judge(ErrorReply(error.sqlstate, error.schema, error.table, over_limit=over))
            if verdict is Verdict.OUTAGE:
                raise DatabaseUnavailable(f"PostgreSQL takes no work: {error}") from None
            if verdict is not Verdict.POISON:
                raise
            self.fail(owner, letter, Reason(str(error), error.sqlstate, error.detail))
            return None

    def _decide(
        self, owner: Ownership, letter: DeadLetter, body: str, extra: float = 0.0
    ) -> Commit:
        try:
            return self._commit(body, extra)
        except DatabaseError as error:
            # Idle after an error: it may have been committed, whatever the SQLSTATE (rule 13).
            if error.in_transaction or not dead_letters.is_decided(self._session.database, letter):
                raise
            return self._session.behind(owner)

    def _commit(self, body: str, extra: float = 0.0) -> Commit:
        try:
            return self._session.commit(body, extra=extra)
        except DatabaseError:
            # Whoever comes next must not meet the failed transaction.
            self._session.settle_down()
            raise

    def fail(self, owner: Ownership, letter: DeadLetter, reason: Reason) -> None:
        """A request could not be fulfilled: the dead letter stays, with this reason."""
        self._commit(lane_rows.fence(owner, 0) + dead_letters.failed_again(letter, reason))
        metrics.count("retried")


def _tell(owner: Ownership, deaths: Sequence[Death]) -> None:
    """One line for all of them, so that a flood of poison is no flood of lines."""
    first = deaths[0]
    # Behind a colon the reason goes into what was written; that is for `dead show`.
    why = first.reason.text.partition(":")[0]
    if first.reason.sqlstate:
        why = f"SQLSTATE {first.reason.sqlstate}"
    log.warning("lane %s: %d became dead letters, the first is %s (%s): see `processor dead list`",
                owner.lane, len(deaths), first.entry.id, why)


def _revived(letter: DeadLetter) -> Entry:
    return decode(letter.entry_id, b"1", letter.edited or letter.body)
