"""Transactions of one kind that fail alike: the kind is paused, and the lane works on without it.

Pure judgement, without a server. A kind is an operation on a table, with the SQLSTATE of its
failure. When many transactions of a kind fail and none succeeds in between, the cause is taken to
be theirs in common, such as a missing table: they are held, no attempt is counted, and one of them
is tried now and then. The first that succeeds ends the pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from processor.apply import failure_reasons
from processor.apply.failure_reasons import Target, target_of
from processor.apply.outcome import Outcome
from processor.apply.retry import backoff, is_of_value
from processor.buffer.parked import HELD
from processor.connections.postgres_session import condition
from processor.ledger.dead_letters import Reason
from processor.telemetry.status import FailingKind, timestamp
from processor.transaction import table_names
from processor.transaction.entry import Entry

#: So many transactions that fail alike, none succeeding in between, pause their kind or the lane.
SYSTEMIC = 25
#: The longest time between two trials of a paused kind, seconds.
_LONGEST = 5.0
#: Paused kinds of a lane. If more of them fail, it is the lane that is paused.
_MOST_PAUSES = 16
#: Kinds whose failures are counted; those that began to fail first are forgotten first.
_MOST_COUNTED = 200


@dataclass(frozen=True, slots=True)
class Kind:
    """Transactions with these operations, which fail with this SQLSTATE.

    `of_value` says that it is values that are refused, which may be each transaction's own fault.
    """

    sqlstate: str
    targets: frozenset[Target]
    of_value: bool = False

    def includes(self, entry: Entry) -> bool:
        """Whether a transaction has all of the operations."""
        return self.targets <= _targets(entry)

    @property
    def operations(self) -> str:
        """The operations in words; names of producers are escaped."""
        return ", ".join(sorted(map(failure_reasons.in_words, self.targets)))


def kind_of(entry: Entry, reason: Reason) -> Kind:
    """Return the kind of a failed transaction: of the operation that failed, if that is known."""
    of_value = is_of_value(reason.sqlstate, reason.constraint)
    targets = _targets(entry)
    if reason.operation is not None:
        targets = frozenset({target_of(entry.operations[reason.operation])})
    there = frozenset(
        (tag, name) for tag, name in targets
        if reason.table and table_names.parts(name)[-1] == reason.table
    )  # fmt: skip
    return Kind(reason.sqlstate, there or targets, of_value)


@dataclass(slots=True)
class KindPause:
    """The pause of one kind.

    `score` is that of its transactions in `:retry`, where `held` of them wait; `first` is the id of
    the first one. `since`, `next_try` and `reported` are monotonic times.
    """

    kind: Kind
    score: float
    first: str
    since: float
    next_try: float
    held: int = 0
    tries: int = 0
    reported: float = 0.0

    def tried(self, now: float) -> None:
        """One of the transactions is tried: plan the next trial."""
        self.tries += 1
        self.next_try = now + backoff(self.tries, 1.0, _LONGEST)

    def published(self, now: float, wall: float) -> FailingKind:
        """The pause as it is published; `now` is monotonic, `wall` in Unix seconds."""
        sqlstate = self.kind.sqlstate
        return FailingKind(
            self.kind.operations, sqlstate, condition(sqlstate), self.held, self.first,
            timestamp(wall - (now - self.since)), timestamp(wall + max(0.0, self.next_try - now)),
        )  # fmt: skip


def in_words(failing: FailingKind, lane: str) -> str:
    """What operators read about a paused kind."""
    return (
        f"{failing.operations} fails with {failing.sqlstate} {failing.condition}:"
        f" {failing.held} transactions are held, the first is {failing.first}; the next trial is"
        f" at {failing.next_try}: mend the cause, or let them fail by"
        f" `processor queues resume {lane.rpartition(':')[0]}`"
    )


@dataclass(slots=True)
class FailingAlike:
    """The paused kinds of one lane; written by `drain.attempts` and `drain.due_work`.

    `leftovers` says that transactions may be held for a pause that has ended, or that another owner
    began: they are to be released.
    """

    pauses: list[KindPause] = field(default_factory=list)
    leftovers: bool = True
    #: By kind, the ids of transactions that failed since one last succeeded.
    _failing: dict[Kind, set[str]] = field(default_factory=dict)
    #: Kinds that an operator resumed: the next failures are theirs to keep.
    _accepted: set[Kind] = field(default_factory=set)

    def judge(
        self, outcome: Outcome, now: float, wall: float
    ) -> tuple[list[KindPause], list[KindPause]]:
        """Move the failures of paused kinds of a batch to its paused entries.

        Return the pauses that began, and those that ended since a transaction succeeded. `now` is
        monotonic, `wall` in Unix seconds.
        """
        if not (outcome.failed or self._failing or self.pauses):
            return [], []
        kinds = [kind_of(e, reason) if reason.sqlstate else None for e, reason in outcome.failed]
        suspects = {kind for kind in kinds if kind} | self._failing.keys() | self._accepted
        suspects |= {pause.kind for pause in self.pauses}
        good = {k for k in suspects if any(map(k.includes, outcome.committed))}
        over = [pause for pause in self.pauses if pause.kind in good]
        for pause in over:
            self.end(pause)
        if outcome.committed:
            # A value is its own transaction's fault as long as anything else succeeds.
            good |= {k for k in suspects if k.of_value}
        for each in good:
            self._failing.pop(each, None)
            self._accepted.discard(each)
        for (entry, _), kind in zip(outcome.failed, kinds, strict=True):
            if kind and kind not in good:
                self._failing.setdefault(kind, set()).add(entry.id)
        begun = self._begin(outcome, kinds, now, wall)
        self._hold(outcome, kinds)
        return begun, over

    def _begin(
        self, outcome: Outcome, kinds: Sequence[Kind | None], now: float, wall: float
    ) -> list[KindPause]:
        paused = {pause.kind for pause in self.pauses}
        begun = []
        for kind in [k for k, ids in self._failing.items() if len(ids) >= SYSTEMIC]:
            if kind in self._accepted or kind in paused:
                self._accepted.discard(kind)
            elif len(self.pauses) == _MOST_PAUSES:
                continue
            else:
                first = outcome.failed[kinds.index(kind)][0].id
                score = max([HELD + wall, *(pause.score + 1.0 for pause in self.pauses)])
                pause = KindPause(kind, score, first, now, now + 1.0, kinds.count(kind))
                self.pauses.append(pause)
                begun.append(pause)
            del self._failing[kind]
        while len(self._failing) > _MOST_COUNTED:
            del self._failing[next(iter(self._failing))]
        return begun

    def _hold(self, outcome: Outcome, kinds: Sequence[Kind | None]) -> None:
        scores = {pause.kind: pause.score for pause in self.pauses}
        failed, outcome.failed = outcome.failed, []
        for (entry, reason), kind in zip(failed, kinds, strict=True):
            if kind in scores:
                outcome.paused.append((entry, scores[kind]))
            else:
                outcome.failed.append((entry, reason))

    def split(
        self, entries: Sequence[Entry]
    ) -> tuple[list[Entry], list[tuple[Entry, float]], list[Entry]]:
        """Split entries into those that may run, those of a paused kind, and those behind them.

        Entries of a paused kind come with the score of their pause. An entry behind one of them
        shares a key with it.
        """
        held_keys: set[str] = set()
        free: list[Entry] = []
        paused: list[tuple[Entry, float]] = []
        behind: list[Entry] = []
        for entry in entries:
            if not held_keys.isdisjoint(entry.keys):
                held_keys.update(entry.keys)
                behind.append(entry)
                continue
            targets = _targets(entry)
            pause = next((p for p in self.pauses if p.kind.targets <= targets), None)
            if pause is None:
                free.append(entry)
            else:
                held_keys.update(entry.keys)
                paused.append((entry, pause.score))
        return free, paused, behind

    def end(self, pause: KindPause) -> None:
        """The pause is over: its transactions are to be released."""
        self.pauses.remove(pause)
        self.leftovers = True

    def resume(self) -> None:
        """An operator resumed the lane: try all again, and let those fail that fail once more."""
        self._accepted.update(pause.kind for pause in self.pauses)
        self._failing.clear()
        self.pauses.clear()
        self.leftovers = True

    def look_for_leftovers(self) -> None:
        """Redis may hold transactions for pauses that are not in this memory."""
        self.leftovers = True

    def nothing_left(self) -> None:
        """All transactions that are held belong to a pause."""
        self.leftovers = False

    @property
    def next_try(self) -> float | None:
        """The monotonic time of the next trial, None if no kind is paused."""
        return min((pause.next_try for pause in self.pauses), default=None)


def _targets(entry: Entry) -> frozenset[Target]:
    return frozenset(map(target_of, entry.operations))
