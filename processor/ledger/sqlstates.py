"""SQLSTATEs of PostgreSQL that concern more than the transaction that received them.

The one list behind both places that judge an error: `apply.verdict` in Python, and the function
`isolate` of the schema in SQL. The SQLSTATEs that processor defines itself are in `errors`.
"""

from __future__ import annotations

#: Another session is in the way: serialization failure, deadlock, lock timeout.
CONTENTION = frozenset({"40001", "40P01", "55P03"})

#: The server does no work at present: it shuts down, starts up, or is read-only.
OUTAGE = frozenset({"25006", "57P01", "57P02", "57P03", "57P04", "57P05"})
#: No connection, no resources, I/O error, authentication failed, no such database.
OUTAGE_CLASSES = frozenset({"08", "53", "58", "28", "3D"})
#: The state in an outage class that a transaction causes itself, if the session stays alive.
OWN_FAULT = {"53": "53400", "58": "58P01"}

#: Internal errors: the server itself is damaged.
INTERNAL_CLASS = "XX"


def _without_own_fault(prefix: str) -> str:
    own = OWN_FAULT.get(prefix)
    return f"{prefix}[^{own[len(prefix)]}]" if own else prefix


#: What ends `isolate` as a whole, as a regular expression: contention, exhausted resources, a
#: cancel, the server's end, I/O errors, internal errors. Every other state is one entry's failure.
ENDS_ISOLATION = "^({})".format(
    "|".join(map(_without_own_fault, ("40", "53", "55P", "57", "58", INTERNAL_CLASS)))
)
