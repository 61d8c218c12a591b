"""What the owner of a lane learns from failures that are not one transaction's own.

A lane is paused under contention and when everything fails alike; a batch that ends its session
again and again is halved until the crasher stands alone (PROTOCOL, "Verdicts").
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

from processor.apply.outcome import Outcome
from processor.apply.retry import backoff
from processor.errors import ENDS_SESSION_STATE
from processor.ledger.dead_letters import Reason
from processor.ownership.owners import OwnedLane
from processor.transaction.entry import Entry

log = logging.getLogger("processor.drain")

#: Failures with one SQLSTATE and no success between before the lane is paused.
SYSTEMIC = 25
#: The same first entry ended the session this often: halve the batch.
_CRASHES = 3
_LONGEST_PAUSE = 60.0
#: A batch that takes this share of the deadline of a call is too large.
_TOO_MUCH = 0.4


def well(
    lane: OwnedLane, entries: Sequence[Entry], outcome: Outcome, most: int, share: float
) -> str | None:
    """The server took a batch. The SQLSTATE that has become systemic in this lane, else None.

    `most` is the ordinary size of a batch, to which a halved one grows back; `share` is how much of
    the deadline of a call it took. Work that is slow, though legal, must not outgrow the deadline.
    """
    if share > _TOO_MUCH:
        lane.limit = max(1, len(entries) // 2)
    elif lane.limit and len(entries) == lane.limit and share < _TOO_MUCH / 4:
        lane.limit = lane.limit * 2 if lane.limit * 2 < most else 0
    lane.trouble = ("", 0)
    if outcome.committed:
        lane.pauses, lane.reason, lane.streak = 0, "", ("", frozenset())
        return None
    state, seen = lane.streak
    for entry, reason in outcome.failed:
        if reason.sqlstate and reason.sqlstate != state:
            state, seen = reason.sqlstate, frozenset()
        if reason.sqlstate:
            seen |= {entry.id}
    lane.streak = (state, seen)
    return state if len(seen) >= SYSTEMIC else None


def pause(lane: OwnedLane, reason: str) -> None:
    """Leave a lane alone for a while: a second, two, four, at most a minute."""
    lane.pauses += 1
    wait = backoff(lane.pauses, 1.0, _LONGEST_PAUSE) * random.uniform(0.8, 1.0)
    if lane.reason != reason:
        log.error("lane %s: paused for %.0f s: %s", lane.lane.name, wait, reason)
    lane.reason = reason
    lane.paused_until = time.monotonic() + wait
    lane.retreat()


def ended_session(
    lane: OwnedLane, entries: Sequence[Entry], attempts: int, *, answered: bool, slow: bool
) -> None:
    """The session ended in this batch; `answered`: the server answered a probe since last time.

    Three times the same first entry: halve the batch; at once if it was `slow`, which is to say
    that it met the deadline. Alone `attempts` times, and twice at the least: condemned.
    """
    first, times = lane.trouble
    times = times + 1 if first == entries[0].id and answered else 1
    lane.trouble = (entries[0].id, times)
    # Once proves nothing: it was in hand when the server ended.
    if len(entries) == 1 and times >= max(attempts, 2):
        lane.condemned = entries[0].id
    elif len(entries) > 1 and (slow or times >= _CRASHES):
        lane.limit = max(1, len(entries) // 2)
        lane.trouble = (entries[0].id, 0)


def condemned(lane: OwnedLane, entries: Sequence[Entry]) -> Outcome | None:
    """The end of a crasher, which stands first. None if it is to be read again, alone."""
    if len(entries) > 1:
        # Nobody else's fate is decided by this.
        lane.limit = 1
        lane.retreat()
        return None
    lane.condemned = ""
    reason = Reason("it ended its session each time it was tried alone", ENDS_SESSION_STATE)
    return Outcome(failed=[(entries[0], reason)])
