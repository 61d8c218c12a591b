"""Everything that can go wrong, sorted by what the caller can do about it.

The drivers' exceptions are turned into these at the edge (`redis_connection`, `database`); no other
module sees a driver's class. Each carries a hint: the next step of the person who reads it.
"""

from __future__ import annotations


class ProcessorError(Exception):
    """Something failed in processor."""

    hint = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class ConfigError(ProcessorError):
    """A setting is wrong; do not start."""


class InvalidTransaction(ProcessorError, ValueError):
    """A transaction was refused at the door: which field, which value, what would be right."""

    def __init__(self, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {problem}", hint=hint)
        self.field = field


class InvalidRead(ProcessorError, ValueError):
    """A read was refused at the door: which table, column or server, and what would be right."""


class Unavailable(ProcessorError):
    """A server is away; nothing is lost, try again."""


class RedisUnavailable(Unavailable):
    """Redis is away. `sent` tells whether a command may have reached it."""

    sent = False


class DatabaseUnavailable(Unavailable):
    """PostgreSQL is away."""


class SubmitUnknown(RedisUnavailable):
    """The reply of Redis was lost: the transaction may or may not be in the buffer.

    Submitting the same transaction again is always safe: its id makes it one effect (rule 11).
    """

    def __init__(self, transaction_id: str, cause: str = "") -> None:
        super().__init__(
            f"transaction {transaction_id}: outcome of submit unknown"
            + (f": {cause}" if cause else ""),
            hint="submit the same transaction again, its id makes it one effect",
        )
        self.transaction_id = transaction_id


class BufferFull(ProcessorError):
    """The buffer refuses new entries: it has reached its limit, or Redis its memory.

    `retry_after` is in seconds, fit for an HTTP Retry-After header.
    """

    def __init__(self, message: str = "", *, retry_after: float = 1.0, hint: str = "") -> None:
        super().__init__(
            message, hint=hint or "answer 503 with Retry-After and see that a processor drains"
        )
        self.retry_after = retry_after


class RedisRefused(ProcessorError):
    """Redis answered with an error. `code` is its first word (OOM, READONLY, NOPERM ...)."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ReplicaLost(DatabaseUnavailable):
    """The replica is lost, or was and is not back yet: what it shows may lack writes."""

    hint = "read from another server, or leave replica out"


#: SQLSTATEs that processor defines itself.
FENCED_STATE = "PR001"  # the function `fence`: another processor owns the lane
EXPECT_STATE = "PR002"  # the function `expect`: another number of rows than expected
ENDS_SESSION_STATE = "PR003"  # a dead letter: crashed its PostgreSQL session on every attempt
ONE_BY_ONE_STATE = "PR004"  # raised and caught inside the function `isolate`
POSSIBLY_APPLIED_STATE = "PR005"  # a dead letter: applied before Redis was restored, or not
LATER_SCHEMA_STATE = "PR006"  # `init-db`: the schema belongs to a later release

#: In words, because PostgreSQL's manual does not explain them.
_OWN_STATES = {
    FENCED_STATE: "another processor owns the lane",
    EXPECT_STATE: "an update or delete met another number of rows than it expects",
}


def refusal(sqlstate: str, *, table: str = "", column: str = "", constraint: str = "") -> str:
    """What PostgreSQL refused, in words that hold names and no value (rule 19)."""
    names = (("table", table), ("column", column), ("constraint", constraint))
    text = " ".join([f"SQLSTATE {sqlstate}", *(f"{kind} {name}" for kind, name in names if name)])
    words = _OWN_STATES.get(sqlstate)
    return f"{text}: {words}" if words else text


class DatabaseError(ProcessorError):
    """PostgreSQL refused a statement; the session is alive.

    Only names are kept for showing (rule 19): `sqlstate`, `constraint`, `table`, `column`. The
    server's own sentence can contain values; it is in `detail` and goes to the dead letter alone.
    """

    def __init__(
        self,
        sqlstate: str,
        *,
        schema: str = "",
        table: str = "",
        column: str = "",
        constraint: str = "",
        detail: str = "",
        in_transaction: bool = True,
    ) -> None:
        super().__init__(refusal(sqlstate, table=table, column=column, constraint=constraint))
        self.sqlstate = sqlstate
        self.schema = schema
        self.table = table
        self.column = column
        self.constraint = constraint
        self.detail = detail
        self.in_transaction = in_transaction


class SchemaMissing(DatabaseUnavailable):
    """The schema `processor` is missing or of another release."""

    hint = "run `processor init-db` with a role that may create schemas"


class RightsMissing(DatabaseUnavailable):
    """The role may not work with the schema `processor`."""

    hint = "grant the role of database.dsn what `processor print schema` lists"


class PoolerDetected(DatabaseUnavailable):
    """A transaction pooler sits between the processor and PostgreSQL."""

    hint = "give the processor a session of its own: point database.dsn at PostgreSQL itself"


class TransactionDead(ProcessorError):
    """The transaction ended as a dead letter; its effect is not in the database."""

    def __init__(self, transaction_id: str, reason: str = "") -> None:
        super().__init__(
            f"transaction {transaction_id} is dead" + (f": {reason}" if reason else ""),
            hint=f"see `processor dead show {transaction_id}`",
        )
        self.transaction_id = transaction_id
        self.reason = reason


class TransactionLost(ProcessorError):
    """The transaction was committed on a server that a failover left behind."""

    def __init__(self, transaction_id: str, reason: str = "") -> None:
        super().__init__(
            f"transaction {transaction_id} is lost" + (f": {reason}" if reason else ""),
            hint="submit it again, its id makes it one effect; `settle: replicated` prevents it",
        )
        self.transaction_id = transaction_id
        self.reason = reason


class ReplicaBehind(ProcessorError):
    """No server that may be read from has the transaction yet.

    `catch_up` is in how many seconds one is expected to have it; None if nobody can tell.
    """

    def __init__(self, message: str = "", *, catch_up: float | None = None) -> None:
        soon = "" if catch_up is None else f" in about {catch_up:.1f} s"
        super().__init__(message, hint=f"ask again{soon}, wait longer, or read from the primary")
        self.catch_up = catch_up


class WaitTimeout(ProcessorError, TimeoutError):
    """The transaction did not reach the awaited state in time; it goes on by itself."""


class NotRunning(ProcessorError):
    """No processor runs here."""


class AlreadyRunning(ProcessorError):
    """A processor already runs here."""
