"""What an error means for the batch that met it.

The ledger decides first, the verdict second (rule 13). What concerns the whole batch is raised;
what is left for the caller is to send entries again, or to find the poison among them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from processor.apply.committer import Committer
from processor.apply.outcome import Contended, Fenced, Outcome
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.config.settings import Settings
from processor.errors import FENCED_STATE, DatabaseError, DatabaseUnavailable
from processor.ledger import lane_rows, outcomes
from processor.ledger.lane_rows import Ownership
from processor.ledger.sqlstates import is_in_doubt
from processor.sql.renderer import tables_of
from processor.sql.table_versions import CHANGED_STATE
from processor.telemetry import metrics
from processor.transaction.entry import Entry


class BatchErrors:
    """Judges the errors of batches, on one session."""

    def __init__(self, committer: Committer, settings: Settings) -> None:
        self._committer = committer
        self._hold = settings.dead_letter.hold == "named"
        self._replanned = False

    def begin(self) -> None:
        """Get ready for the errors of a batch: its stale plans are replaced once."""
        self._replanned = False

    def look_up(
        self, owner: Ownership, entries: Sequence[Entry], outcome: Outcome
    ) -> list[Entry]:
        """Record entries that the ledger has as known; return the entries that are new to it."""
        found = outcomes.find_entries(self._committer.session, owner, entries)
        return outcome.without_known(entries, found, hold=self._hold)

    def rest(
        self, owner: Ownership, entries: list[Entry], outcome: Outcome, error: DatabaseError,
        started: float, *, patient: bool = True,
    ) -> list[Entry] | None:  # fmt: skip
        """Return the entries to send again after an error; None if one of them is poison.

        `started` is the monotonic time at which they were sent. Raises Fenced,
        DatabaseUnavailable and, for a lock or a conflict unless `patient`, Contended.
        """
        if not error.in_transaction:
            # Idle after an error: it may have been committed, whatever the SQLSTATE (rule 13).
            rest = self.look_up(owner, entries, outcome)
            if len(rest) < len(entries):
                return rest
        prepared = self._committer.prepares
        verdict = verdict_on(self._committer, error, entries, started, prepared=prepared)
        self._committer.roll_back()
        if error.sqlstate == CHANGED_STATE and (
            self._committer.refresh_tables(tables_of(entries)) or self._committer.proved_by_watches
        ):
            metrics.count("verdicts", verdict=Verdict.STALE_PLAN.value)
            return entries
        metrics.count("verdicts", verdict=verdict.value)
        if verdict is Verdict.APPLIED:
            return self.look_up(owner, entries, outcome)
        if verdict is Verdict.STALE_PLAN and not self._replanned:
            self._committer.forget_tables()
            self._replanned = True
            return entries
        if verdict is Verdict.CONTENTION:
            if not patient:
                raise Contended("a lock or a conflict is still in the way")
            return entries
        if verdict is Verdict.FENCED:
            raise Fenced(owner.lane)
        if verdict is Verdict.OUTAGE:
            raise DatabaseUnavailable(f"PostgreSQL rejects work: {error}")
        return None

    def prove_alive(self, owner: Ownership, error: DatabaseError) -> None:
        """Commit without the entry that failed with `error`, if that may be the server's failure.

        Raises DatabaseUnavailable if this fails too: then the entry is not at fault.
        """
        if not is_in_doubt(error.sqlstate):
            return
        try:
            self._committer.commit(lane_rows.fence(owner, 0))
        except DatabaseError as probe:
            self._committer.roll_back()
            if probe.sqlstate == FENCED_STATE:
                raise Fenced(owner.lane) from None
            raise DatabaseUnavailable(f"PostgreSQL rejects work: {probe}") from None


def verdict_on(
    committer: Committer, error: DatabaseError, entries: Sequence[Entry], started: float, *,
    prepared: bool = False,
) -> Verdict:  # fmt: skip
    """Return the verdict on an error whose outcome the ledger has decided (rule 13).

    `prepared` says that the entries were sent as EXECUTEs of prepared statements.
    """
    over_limit = time.monotonic() - started >= committer.shortest_limit(entries)
    return judge(ErrorReply(
        error.sqlstate, error.schema, error.table, over_limit=over_limit, prepared=prepared
    ))  # fmt: skip
