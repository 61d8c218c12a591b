"""Apply a batch: fold copies, write one string, and if that fails find out exactly what it was.

Hands the drain an `Outcome`: which entries are committed, which the ledger knew, which failed and
why, and which wait behind those. Raises what concerns the whole batch: Fenced, Contended, Systemic,
and the Unavailable of the connection.

DESIGN. The quick way is a string of EXECUTEs behind the fence and the ledger rows. An error in it
names no entry, so the batch is sent once more through `isolation`: one more round trip, whatever
the number of poison. While poison keeps coming, batches go that way at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence

from processor import crashpoint
from processor.apply import poison
from processor.apply.batch_text import Written, limited, names_of, write
from processor.apply.committer import Committer, prolonged
from processor.apply.outcome import Contended, Fenced, Outcome, Systemic
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.config.settings import Settings
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import lane_rows, outcomes
from processor.ledger.dead_letters import Reason
from processor.ledger.lane_rows import Ownership
from processor.telemetry import metrics
from processor.transaction.entry import Entry

_REDONE_IN_PLACE = 6
#: Batches that go through isolation at once after poison was met.
_WARY = 8


class Applier:
    """Applies batches on one session."""

    def __init__(self, session: Committer, settings: Settings) -> None:
        self._session = session
        self._database = session.database
        self._settings = settings
        self._wary = 0
        self._isolated = self._replanned = False

    def apply(
        self,
        owner: Ownership,
        entries: Sequence[Entry],
        ahead: Written | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Outcome:
        """Apply entries of one lane, in order. Raises as the module says.

        `ahead` is what `write_ahead` made of the same entries.
        """
        outcome = Outcome()
        self._session.begin()
        self._isolated = self._replanned = False
        pending = _without_copies(entries, outcome)
        tries = 0
        while pending:
            written = self._written(pending, ahead, outcome)
            pending = written.entries
            crashpoint.reach("batch-rendered")
            if not pending:
                break
            tries += 1
            if tries > _REDONE_IN_PLACE:
                raise Contended("redone in place without success")
            started = time.monotonic()
            try:
                self._send(owner, written, outcome, meanwhile)
                break
            except DatabaseError as error:
                pending = self._judge(owner, pending, outcome, error, started)
            ahead = meanwhile = None
        if outcome.known and outcome.commit is None:
            outcome.commit = self._session.behind(owner)
        return outcome

    def write_ahead(self, entries: Sequence[Entry]) -> Written | None:
        """Write entries while the server works on others; None if a table is not known yet."""
        try:
            written = self._write(_without_copies(entries, Outcome()))
        except KeyError:
            return None
        return None if written.unfit else written

    def _written(self, entries: list[Entry], ahead: Written | None, outcome: Outcome) -> Written:
        if ahead is not None and ahead.mark == self._session.mark and ahead.entries == entries:
            return ahead
        names = names_of(entries)
        self._session.know(names)
        written = self._write(entries)
        if written.unfit:
            # The catalog may be older than the table: ask once more before anything is pronounced.
            self._session.know(names, anew=True)
            written = self._write(entries)
        if written.unfit:
            # Committed before its table was changed is no failure: the ledger is asked first.
            entries = self._look_up(entries, outcome)
            outcome.failed += [(e, written.unfit[e.id]) for e in entries if e.id in written.unfit]
            written = self._write(_not_behind(entries, written.unfit, outcome))
        return written

    def _write(self, entries: list[Entry]) -> Written:
        return write(self._session, entries, in_parts=self._wary > 0)

    def _send(
        self,
        owner: Ownership,
        written: Written,
        outcome: Outcome,
        meanwhile: Callable[[], None] | None,
    ) -> None:
        if written.parts is not None:
            self._wary -= 1
            self._isolate(owner, written, written.parts, outcome, meanwhile)
            return
        entries = written.entries
        prepared = self._session.prepares
        body = (
            lane_rows.fence(owner, len(entries), last=entries[-1].entry_id)
            + outcomes.insert(owner, entries, prepared=prepared)
            + written.text
        )
        outcome.commit = self._session.commit(
            body, prepared=prepared, extra=prolonged(entries), meanwhile=meanwhile
        )
        outcome.committed += entries

    def _isolate(
        self,
        owner: Ownership,
        written: Written,
        parts: poison.Parts,
        outcome: Outcome,
        meanwhile: Callable[[], None] | None,
    ) -> None:
        crashpoint.reach("isolate-before")
        limit = self._settings.database.call_timeout * 0.9
        outcome.commit = poison.commit(
            self._session, owner, written.entries, parts, limit, meanwhile
        )
        crashpoint.reach("isolate-after")
        bad = poison.failures(outcome.commit)
        if bad:
            self._wary = _WARY
        for place, entry in enumerate(written.entries):
            if place not in bad:
                outcome.committed.append(entry)
            elif (reason := bad[place]) is None:
                outcome.held.append(entry)
            else:
                outcome.failed.append((entry, reason))

    def _judge(
        self, owner: Ownership, entries: list[Entry], outcome: Outcome, error: DatabaseError,
        started: float,
    ) -> list[Entry]:  # fmt: skip
        """What to do after an error: the entries that are to be sent again, or an exception."""
        if not error.in_transaction:
            # Idle after an error: it may have been committed, whatever the SQLSTATE (rule 13).
            rest = self._look_up(entries, outcome)
            if len(rest) < len(entries):
                return rest
        prepared = self._session.prepares
        verdict = judge(self._facts(error, entries, started, prepared=prepared))
        metrics.count("verdicts", verdict=verdict.value)
        self._session.settle_down()
        if verdict is Verdict.APPLIED:
            return self._look_up(entries, outcome)
        if verdict is Verdict.STALE_PLAN and not self._replanned:
            self._session.forget_names()
            self._replanned = True
            return entries
        if verdict is Verdict.CONTENTION:
            return entries
        if verdict is Verdict.FENCED:
            raise Fenced(owner.lane)
        if verdict is Verdict.OUTAGE:
            raise DatabaseUnavailable(f"PostgreSQL takes no work: {error}")
        if verdict is Verdict.SYSTEMIC:
            raise Systemic(str(error))
        return self._find_poison(owner, entries, outcome, error)

    def _facts(
        self, error: DatabaseError, entries: Sequence[Entry], started: float, *, prepared: bool
    ) -> ErrorReply:
        over = time.monotonic() - started >= self._session.least_limit(entries)
        return ErrorReply(
            error.sqlstate, error.schema, error.table, over_limit=over, prepared=prepared
        )

    def _look_up(self, entries: list[Entry], outcome: Outcome) -> list[Entry]:
        """Part off what the ledger knows; the entries that are new to it."""
        found = outcomes.find(self._database, [e.id for e in entries])
        holding: set[str] = set()
        rest = []
        for entry in entries:
            known = found.get(entry.id)
            if known is None:
                rest.append(entry)
            elif known.hash != entry.hash:
                outcome.clashing.append(entry)
            else:
                outcome.known.append((entry, known))
                # It may be later than the last commit whose position is known.
                outcome.commit = None
                if known.outcome == "dead" and self._settings.dead_letter.hold == "named":
                    # It died before a crash, and goes on holding what comes behind it.
                    holding.add(entry.id)
                    rest.append(entry)
        return _not_behind(rest, holding, outcome)

    def _find_poison(
        self, owner: Ownership, entries: list[Entry], outcome: Outcome, error: DatabaseError
    ) -> list[Entry]:
        self._wary = _WARY
        if error.sqlstate[:2] == "42":
            # The names behind it may have changed since they were looked up.
            self._session.forget_names()
        if error.sqlstate == "57014" or self._isolated or limited(entries):
            # A time limit counts for one statement, and isolation is one statement (rule 18).
            self._session.know(names_of(entries))
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
        """Apply one entry, unprepared; why it failed, None if it is committed."""
        started = time.monotonic()
        body = (
            lane_rows.fence(owner, 1, last=entry.entry_id)
            + outcomes.insert(owner, [entry])
            + self._session.renderer.plain(entry)
        )
        try:
            outcome.commit = self._session.commit(body, extra=prolonged([entry]))
        except DatabaseError as error:
            if not error.in_transaction and not self._look_up([entry], outcome):
                return None
            verdict = judge(self._facts(error, [entry], started, prepared=False))
            if verdict is not Verdict.POISON:
                if self._judge(owner, [entry], outcome, error, started):
                    raise Contended("an entry met contention alone") from None
                return None
            self._session.settle_down()
            return Reason(f"{error}", error.sqlstate, error.detail)
        outcome.committed.append(entry)
        return None


def _without_copies(entries: Sequence[Entry], outcome: Outcome) -> list[Entry]:
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


def _not_behind(entries: list[Entry], unfit: Container[str], outcome: Outcome) -> list[Entry]:
    """Take out what is unfit, and hold what comes behind it in the batch and shares its key."""
    held_keys: set[str] = set()
    free: list[Entry] = []
    for entry in entries:
        if entry.id in unfit:
            held_keys.update(entry.keys)
        elif entry.keys and not held_keys.isdisjoint(entry.keys):
            held_keys.update(entry.keys)
            outcome.held.append(entry)
        else:
            free.append(entry)
    return free
