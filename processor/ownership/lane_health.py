"""What failures say about a lane, if they are not one transaction's fault (PROTOCOL, "Verdicts").

Pure judgement, without a server or a clock. A lane is paused under contention and when all its
transactions fail alike; a batch that ends its session again and again is halved until the
transaction that does it, the crasher, is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from processor.apply.outcome import Outcome
from processor.apply.retry import backoff
from processor.ownership.failing_alike import SYSTEMIC
from processor.transaction.entry import Entry

#: A batch is halved after the session ended so often with the same entry at its head.
_CRASHES = 3
#: Seconds. Work is to continue soon after the cause is gone, and one try costs little.
_LONGEST_PAUSE = 3.0
#: A batch that takes this share of the deadline of a call is too large.
_TOO_LONG = 0.4


@dataclass(slots=True)
class LaneHealth:
    """Pauses, batch size and suspects of one lane; written by `drain.attempts` alone.

    `paused_until` is monotonic time, `reason` why the lane was last paused. `batch_limit` is the
    size of a batch that had to be halved, 0 for the ordinary size. `condemned` is the id of a
    transaction that is to be judged as a crasher.
    """

    paused_until: float = 0.0
    pauses: int = 0
    reason: str = ""
    batch_limit: int = 0
    condemned: str = ""
    #: The first entry of the batch in which the session last ended, and how often in a row.
    _session_ends: tuple[str, int] = ("", 0)
    #: The SQLSTATE of the current failures, and the ids that failed with it since a success.
    _failing: tuple[str, frozenset[str]] = ("", frozenset())
    #: An operator resumed the lane: the next failures that are alike are accepted.
    _accepting: bool = False

    def batch_taken(
        self, entries: Sequence[Entry], outcome: Outcome, ordinary: int, share: float
    ) -> str:
        """PostgreSQL answered a batch. Return the SQLSTATE that became systemic, "" if none did.

        `ordinary` is the configured size of a batch, to which a halved one grows back. `share` is
        the part of a call's deadline that it took: legal but slow work must not outgrow that.
        """
        if share > _TOO_LONG:
            self.batch_limit = max(1, len(entries) // 2)
        elif self.batch_limit and len(entries) == self.batch_limit and share < _TOO_LONG / 4:
            self.batch_limit = self.batch_limit * 2 if self.batch_limit * 2 < ordinary else 0
        self._session_ends = ("", 0)
        if outcome.committed:
            self.pauses, self.reason, self._failing = 0, "", ("", frozenset())
            self._accepting = False
            return ""
        state, failed = self._failing
        for entry, reason in outcome.failed:
            if reason.sqlstate and reason.sqlstate != state:
                state, failed = reason.sqlstate, frozenset()
            if reason.sqlstate:
                failed |= {entry.id}
        if len(failed) >= SYSTEMIC and self._accepting:
            state, failed, self._accepting = "", frozenset(), False
        self._failing = (state, failed)
        return state if len(failed) >= SYSTEMIC else ""

    def resume(self) -> None:
        """An operator resumed the lane: it is tried at once, and its next failures are accepted."""
        self._failing, self._accepting = ("", frozenset()), True
        self.pauses, self.paused_until = 0, 0.0

    def pause(self, reason: str, now: float, jitter: float) -> float:
        """Leave the lane alone: for one second, two, then three at a time. Return the seconds.

        `now` is monotonic time, the seconds are multiplied by `jitter`.
        """
        self.pauses += 1
        wait = backoff(self.pauses, 1.0, _LONGEST_PAUSE) * jitter
        self.reason = reason
        self.paused_until = now + wait
        return wait

    def session_ended(
        self, entries: Sequence[Entry], attempts: int, *, answered: bool, slow: bool
    ) -> None:
        """The session ended in this batch.

        `answered` says that PostgreSQL answered a probe since the session last ended, `slow` that
        the batch met the deadline. With the same first entry three times (once if slow), the batch
        is halved. Alone in its batch `attempts` times, and at least twice, the entry is condemned.
        """
        first, times = self._session_ends
        times = times + 1 if first == entries[0].id and answered else 1
        self._session_ends = (entries[0].id, times)
        # One crash is no evidence: the server may have stopped for another reason.
        if len(entries) == 1 and times >= max(attempts, 2):
            self.condemned = entries[0].id
        elif len(entries) > 1 and (slow or times >= _CRASHES):
            self.batch_limit = max(1, len(entries) // 2)
            self._session_ends = (entries[0].id, 0)

    def acquit(self) -> None:
        """The condemned transaction is judged now."""
        self.condemned = ""

    def judge_alone(self, entry: Entry) -> None:
        """Judge the condemned transaction when it is alone in its batch."""
        self.condemned, self.batch_limit = entry.id, 1
