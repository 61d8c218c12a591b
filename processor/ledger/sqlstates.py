"""SQLSTATEs of PostgreSQL that concern more than the transaction that received them.

The one list behind both places that judge an error: `apply.verdict` in Python, and the function
`isolate` of the schema in SQL. The SQLSTATEs that processor defines itself are in `errors`.
"""

from __future__ import annotations

#: Another session is in the way: serialization failure, deadlock, lock timeout.
CONTENTION = frozenset({"40001", "40P01", "55P03"})

#: No resources, I/O error: the server cannot work, although the session is alive.
OUTAGE_CLASSES = frozenset({"53", "58"})
#: The state in an outage class that a transaction causes itself, if the session stays alive.
OWN_FAULT = {"53": "53400", "58": "58P01"}

#: The server is read-only, shuts down or starts up; no connection, authentication failed, no such
#: database; internal errors. A statement raises them in a live session too: for a foreign server
#: that it calls, or by elog(ERROR) in an extension. A commit without it decides whose they are.
_IN_DOUBT = frozenset({"25006", "57P01", "57P02", "57P03", "57P04", "57P05"})
_IN_DOUBT_CLASSES = frozenset({"08", "28", "3D", "XX"})


def is_in_doubt(sqlstate: str) -> bool:
    """Whether a live session alone does not prove that the failure is the transaction's own."""
    return sqlstate in _IN_DOUBT or sqlstate[:2] in _IN_DOUBT_CLASSES


def _without_own_fault(prefix: str) -> str:
    own = OWN_FAULT.get(prefix)
    return f"{prefix}[^{own[len(prefix)]}]" if own else prefix


#: What ends `isolate` as a whole, as a regular expression: contention, exhausted resources, a
#: cancel, I/O errors. Every other state is one entry's failure.
ENDS_ISOLATION = "^({})".format(
    "|".join(map(_without_own_fault, ("40", "53", "55P", "570", "58")))
)
