"""Whether and when a failed transaction is tried again: pure policy, no server."""

from __future__ import annotations

from processor.errors import ENDS_SESSION_STATE, POSSIBLY_APPLIED_STATE

#: Undefined table, column, function, object and schema.
_UNDEFINED_NAMES = frozenset({"42P01", "42703", "42883", "42704", "3F000"})


def is_final(sqlstate: str, constraint: str = "") -> bool:
    """Whether the same transaction can only fail again, so that retries are pointless.

    23503 (foreign key) is not final: the parent row may be on its way in another lane. Nor is 23514
    without a constraint: no partition of the table takes the row, and one may be made soon.
    """
    return (
        is_of_value(sqlstate, constraint)
        or sqlstate in _UNDEFINED_NAMES
        or sqlstate in (ENDS_SESSION_STATE, POSSIBLY_APPLIED_STATE)
    )


def is_of_value(sqlstate: str, constraint: str = "") -> bool:
    """Whether PostgreSQL refuses the values of a transaction, and will refuse them again."""
    if sqlstate == "23503" or (sqlstate == "23514" and not constraint):
        return False
    return sqlstate[:2] in ("22", "23")


def backoff(attempt: int, delay: float, ceiling: float) -> float:
    """Return the seconds to wait after a failed attempt: `delay`, doubled each time, to `ceiling`.

    With the defaults (5 s, 300 s): 5 s, 10 s, 20 s, 40 s, 80 s, 160 s, then every 5 minutes.
    """
    return min(ceiling, delay * 2.0 ** min(attempt - 1, 32))
