"""What a failure means: pure functions from (connection state, phase, SQLSTATE) to a verdict.

The connection's state and the phase decide first, the SQLSTATE second, message text never. The
table is that of PROTOCOL, "Verdicts"; the exponential schedule of retries and the gate that is
shut during an outage stand here too, because they are policy and need no server.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """The class of a failure; the value is its word in logs and metrics."""

    OUTAGE = "outage"
    CONTENTION = "contention"
    APPLIED = "applied"
    FENCED = "fenced"
    UNKNOWN = "unknown"
    POISON = "poison"
    STALE_PLAN = "stale plan"
    SYSTEMIC = "systemic"


FENCED_STATE = "PR001"
EXPECT_STATE = "PR002"
ENDS_SESSION_STATE = "PR003"
DOUBTFUL_STATE = "PR005"

_CONTENTION = frozenset({"40001", "40P01", "55P03"})
_STALE_PLAN = frozenset({"26000", "42P05", "0A000"})
_OUTAGE_STATES = frozenset({"25006", "57P01", "57P02", "57P03", "57P04", "57P05"})
_OUTAGE_CLASSES = frozenset({"08", "53", "58", "28", "3D"})
# The server is well and the session alive: these are the entry's own doing (PROTOCOL, poison).
_POISON_STATES = frozenset({"53400", "58P01"})
_UNKNOWN_NAMES = frozenset({"42P01", "42703", "42883", "42704", "3F000"})
_REDIS_OUTAGE = frozenset({
    "LOADING", "READONLY", "MISCONF", "NOREPLICAS", "NOAUTH", "NOPERM", "CLUSTERDOWN",
    "MASTERDOWN", "WRONGPASS", "BUSY", "TRYAGAIN", "MOVED", "ASK", "EXECABORT", "ERR",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """The facts of a refusal by PostgreSQL that a verdict may look at."""

    sqlstate: str
    schema: str = ""
    table: str = ""
    in_transaction: bool = True
    over_limit: bool = False
    prepared: bool = False


def judge(failure: Failure) -> Verdict:
    """The verdict on an error that left the session alive.

    A session that is idle after an error is *unknown* whatever its SQLSTATE (rule 13): the ledger
    decides first, and the caller asks again with `in_transaction` set once it has.
    """
    state = failure.sqlstate
    if not failure.in_transaction:
        return Verdict.UNKNOWN
    if state == FENCED_STATE:
        return Verdict.FENCED
    if state == "23505" and (failure.schema, failure.table) == ("processor", "ledger"):
        return Verdict.APPLIED
    if failure.prepared and state in _STALE_PLAN:
        return Verdict.STALE_PLAN
    if state in _CONTENTION or (state == "57014" and not failure.over_limit):
        # Somebody else's pg_cancel_backend has our own time-out's SQLSTATE: not the entry's doing.
        return Verdict.CONTENTION
    if state in _OUTAGE_STATES or (state[:2] in _OUTAGE_CLASSES and state not in _POISON_STATES):
        return Verdict.OUTAGE
    if state[:2] == "XX":
        return Verdict.SYSTEMIC
    return Verdict.POISON


def judge_redis(code: str) -> Verdict:
    """The verdict on an error reply of Redis; OOM does not shut the gate (rule 20)."""
    return Verdict.OUTAGE if code in _REDIS_OUTAGE else Verdict.POISON


def is_final(sqlstate: str) -> bool:
    """Whether the same transaction can only fail again, so that retries would be vain.

    23503 is not final: the parent row may be on its way in another lane.
    """
    if sqlstate == "23503":
        return False
    return (
        sqlstate[:2] in ("22", "23")
        or sqlstate in _UNKNOWN_NAMES
        or sqlstate in (ENDS_SESSION_STATE, DOUBTFUL_STATE)
    )


def backoff(attempt: int, delay: float, ceiling: float) -> float:
    """Seconds to wait after a failed attempt: delay, twice that, four times, up to the ceiling.

    With the defaults (5 s, 300 s): 5 s, 10 s, 20 s, 40 s, 80 s, 160 s, then every 5 minutes.
    """
    return min(ceiling, delay * 2.0 ** min(attempt - 1, 32))


class Gate:
    """Shut during an outage: work waits, and one probe a second opens it again.

    `now` is monotonic time. The first probe comes at once, since most outages of a session are
    over with the next connect; without the gate, producers that set the Event would hammer a dead
    server.
    """

    PROBE = 1.0

    def __init__(self) -> None:
        self.reason = ""
        self.since: float | None = None
        self._next = 0.0

    @property
    def is_shut(self) -> bool:
        """Whether work has to wait."""
        return self.since is not None

    def shut(self, now: float, reason: str, *, jitter: float = 0.0, stale: bool = False) -> bool:
        """Note a failed call; True if this began the outage (so that it is logged once).

        `stale` says that the session was an old one, of which nobody knew that it had ended: then
        the next probe is due at once, too.
        """
        began = self.since is None
        if began:
            self.since = now
        self._next = now if began or stale else now + self.PROBE * (0.8 + 0.2 * jitter)
        self.reason = reason
        return began

    def open(self, now: float) -> float | None:
        """Note a probe that succeeded; seconds that the outage lasted, None if there was none."""
        if self.since is None:
            return None
        lasted, self.since, self.reason = now - self.since, None, ""
        return lasted

    def wait(self, now: float) -> float:
        """Seconds until the next probe is due; zero if it is due or the gate is open."""
        return max(0.0, self._next - now) if self.is_shut else 0.0
