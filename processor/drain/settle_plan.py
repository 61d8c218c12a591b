"""The plan of a settlement: a pure function from the outcome of a batch to what is done about it.

Nothing here talks to a server. `settle` carries a plan out; every entry of the batch is then in
exactly one place: removed, parked, in the dead letters, or left in the stream.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from processor.apply.dead_letter_writer import Death
from processor.apply.outcome import Outcome
from processor.apply.retry import backoff, is_final
from processor.buffer.commit_notes import EntryIds, Note
from processor.config.settings import Retry as RetryPolicy
from processor.connections.wal_position import Position
from processor.errors import POSSIBLY_APPLIED_STATE
from processor.ledger.dead_letters import Reason
from processor.ledger.outcomes import Recorded
from processor.transaction.entry import Entry

#: Why an entry dies if the ledger can no longer say whether it was applied (rule 23).
POSSIBLY_APPLIED = Reason(
    "possibly applied: a restored Redis brought it back from before the ledger was pruned",
    POSSIBLY_APPLIED_STATE,
)
_CLASH = Reason("the id was used before for another payload")


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed entry that is tried again in `wait` seconds; `attempts` have failed so far."""

    entry: Entry
    attempts: int
    reason: str
    wait: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is done about each entry of a batch.

    `committed` were applied by this batch, `known` before it, according to the ledger. `retries`,
    `held` and `paused` are parked, the last with the score of the pause of their kind. `deaths`
    become dead letters; `blocking` are the dead letters, new and known ones, that hold their keys.
    `clashing` have the id of another payload, `placed` are copies
    of parked entries, and `copies` are further entry ids by that of the entry they repeat.
    `position` is where the batch was committed.
    """

    committed: Sequence[Entry] = ()
    known: Sequence[tuple[Entry, Recorded]] = ()
    retries: Sequence[Retry] = ()
    deaths: Sequence[Death] = ()
    held: Sequence[Entry] = ()
    paused: Sequence[tuple[Entry, float]] = ()
    blocking: Sequence[Entry] = ()
    clashing: Sequence[Entry] = ()
    placed: Sequence[Entry] = ()
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    position: Position | None = None

    @property
    def decided(self) -> list[Entry]:
        """Entries whose outcome is in PostgreSQL."""
        known = (entry for entry, _ in self.known)
        return [*self.committed, *known, *(death.entry for death in self.deaths)]

    @property
    def applied(self) -> list[Entry]:
        """Entries that were applied, by this batch or before."""
        known = (entry for entry, recorded in self.known if recorded.outcome == "applied")
        return [*self.committed, *known]

    @property
    def touches_keys(self) -> bool:
        """Whether a key becomes or stays blocked, so that later entries depend on this plan."""
        return any((
            any(retry.entry.keys for retry in self.retries),
            any(death.entry.keys for death in self.deaths if not death.clashing),
            any(entry.keys for entry in self.held),
            any(entry.keys for entry, _ in self.paused),
            any(entry.keys for entry, _ in self.known),
        ))  # fmt: skip

    def leaving(self, parked: Iterable[Entry]) -> list[str]:
        """Return the entry ids that leave the stream.

        `parked` are the entries that were parked with their record; those that a full Redis could
        not park stay.
        """
        gone = [
            *parked,
            *(d.entry for d in self.deaths if not d.clashing),
            *self.committed, *(entry for entry, _ in self.known), *self.clashing, *self.placed,
        ]  # fmt: skip
        return [i for e in gone for i in (e.entry_id, *self.copies.get(e.entry_id, ()))]

    @property
    def has_note(self) -> bool:
        """Whether there is anything for a commit note to say."""
        return bool(self.applied or self.deaths)

    def note(self, buffer: str, at: float, page: Sequence[Entry] | None) -> Note:
        """Return the commit note (rule 21), written at `at` (Unix seconds).

        `page` are the entries that were read from the stream, None if the batch was parked.
        """
        done = {entry.id for entry in self.applied}
        dead = {d.entry.id: (d.entry.entry_id, d.reason.text) for d in self.deaths}
        note = Note(buffer, at, self.position, dead=dead)
        if page is None:
            return replace(note, also=frozenset(done))
        if not done:
            return note
        clashing = {entry.entry_id for entry in self.clashing}
        mine = [e for e in page if e.id in done and e.entry_id not in clashing]
        return replace(
            note, entries=EntryIds.of(e.entry_id for e in mine),
            also=frozenset(e.id for e in mine if e.delayed),
        )  # fmt: skip


def _spread() -> float:
    return random.uniform(1.0, 1.1)


def plan(
    outcome: Outcome, policy: RetryPolicy, *, hold: bool,
    parked_hashes: Mapping[str, str] | None = None, jitter: Callable[[], float] = _spread,
) -> Settlement:  # fmt: skip
    """Plan the settlement of a batch.

    With `hold`, dead letters hold the keys that they name (rule 27). `parked_hashes` are payload
    hashes of parked entries by transaction id. Waits are multiplied by `jitter()`.
    """
    clashing = _clashing_with_parked(outcome, parked_hashes or {})
    apart = {entry.entry_id for entry in clashing}
    retries: list[Retry] = []
    deaths: list[Death] = []
    for entry, reason in outcome.failed:
        if entry.entry_id in apart:
            continue
        attempts = entry.attempt + 1
        final = is_final(reason.sqlstate, reason.constraint)
        if final or attempts >= (entry.attempts or policy.attempts):
            deaths.append(Death(entry, reason, attempts))
        else:
            wait = backoff(attempts, policy.delay, policy.max_delay) * jitter()
            retries.append(Retry(entry, attempts, reason.text, wait))
    blocking = [d.entry for d in deaths if hold and d.entry.keys]
    # Dead-lettered before a crash; it still blocks its keys. (Not if the dead letter has its former
    # id: that one blocks them.)
    blocking += [e for e, known in outcome.known
                 if hold and known.outcome == "dead" and e.keys and not known.former]  # fmt: skip
    clashing = [*outcome.clashing, *clashing]
    deaths += [Death(entry, _CLASH, 1, clashing=True) for entry in clashing]
    return Settlement(
        outcome.committed, outcome.known, retries, deaths,
        [e for e in outcome.held if e.entry_id not in apart] if apart else outcome.held,
        [p for p in outcome.paused if p[0].entry_id not in apart] if apart else outcome.paused,
        blocking, clashing, outcome.placed, outcome.copies,
        outcome.commit.position if outcome.commit else None,
    )  # fmt: skip


def _clashing_with_parked(outcome: Outcome, hashes: Mapping[str, str]) -> list[Entry]:
    """Entries that would be parked under an id under which another payload is parked already.

    The second payload would overwrite the first, so it becomes a dead letter instead.
    """
    if not hashes:
        return []
    failed = (entry for entry, _ in outcome.failed)
    waiting = [*failed, *outcome.held, *(entry for entry, _ in outcome.paused)]
    return [e for e in waiting if hashes.get(e.id, e.hash) != e.hash]
