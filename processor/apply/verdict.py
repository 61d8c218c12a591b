"""What a failure means: a pure function from (connection state, SQLSTATE) to a verdict.

The connection's state decides first, the SQLSTATE second, message text never. The table is the one
in PROTOCOL, "Verdicts".
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
# In the outage classes, but with the session alive the entry itself caused them (PROTOCOL, poison).
_POISON_STATES = frozenset({"53400", "58P01"})


@dataclass(frozen=True, slots=True)
class Failure:
    """The facts about an error reply of PostgreSQL that a verdict may depend on."""

    sqlstate: str
    schema: str = ""
    table: str = ""
    in_transaction: bool = True
    over_limit: bool = False
    prepared: bool = False


def judge(failure: Failure) -> Verdict:
    """Return the verdict on an error that left the session alive.

    A session that is idle after an error makes the outcome *unknown* whatever the SQLSTATE (rule
    13): the caller looks the entries up in the ledger, then asks again with `in_transaction` set.
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
        # A pg_cancel_backend has the same SQLSTATE as our own time limit: not the entry's fault.
        return Verdict.CONTENTION
    if state in _OUTAGE_STATES or (state[:2] in _OUTAGE_CLASSES and state not in _POISON_STATES):
        return Verdict.OUTAGE
    if state[:2] == "XX":
        return Verdict.SYSTEMIC
    return Verdict.POISON
