"""What a failure means: a pure function from (connection state, SQLSTATE) to a verdict.

The connection's state decides first, the SQLSTATE second, message text never. The table is the one
in PROTOCOL, "Verdicts".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from processor.errors import FENCED_STATE
from processor.ledger import sqlstates


class Verdict(enum.Enum):
    """The class of a failure; the value is its word in logs and metrics."""

    OUTAGE = "outage"
    CONTENTION = "contention"
    APPLIED = "applied"
    FENCED = "fenced"
    UNKNOWN = "unknown"
    POISON = "poison"
    STALE_PLAN = "stale plan"


# A prepared statement that the server does not have, has twice, or that no longer fits its table.
_STALE_PLAN = frozenset({"26000", "42P05", "0A000"})
_OWN_FAULT = frozenset(sqlstates.OWN_FAULT.values())


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The facts about an error reply of PostgreSQL that a verdict may depend on."""

    sqlstate: str
    schema: str = ""
    table: str = ""
    in_transaction: bool = True
    over_limit: bool = False
    prepared: bool = False


def judge(error: ErrorReply) -> Verdict:
    """Return the verdict on an error that left the session alive.

    A session that is idle after an error makes the outcome *unknown* whatever the SQLSTATE (rule
    13): the caller looks the entries up in the ledger, then asks again with `in_transaction` set.
    For a state that `sqlstates.is_in_doubt`, poison holds only if the server commits without the
    entry: that is what isolation does, and what a probe finds out for an entry applied alone.
    """
    state = error.sqlstate
    if not error.in_transaction:
        return Verdict.UNKNOWN
    if state == FENCED_STATE:
        return Verdict.FENCED
    if state == "23505" and (error.schema, error.table) == ("processor", "ledger"):
        return Verdict.APPLIED
    if error.prepared and state in _STALE_PLAN:
        return Verdict.STALE_PLAN
    if state in sqlstates.CONTENTION or (state == "57014" and not error.over_limit):
        # A pg_cancel_backend has the same SQLSTATE as our own time limit: not the entry's fault.
        return Verdict.CONTENTION
    if state[:2] in sqlstates.OUTAGE_CLASSES and state not in _OWN_FAULT:
        return Verdict.OUTAGE
    return Verdict.POISON
