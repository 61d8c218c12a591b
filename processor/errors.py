"""The errors of processor, sorted by what the caller can do about them.

The clients in `connections` turn the drivers' exceptions into these errors; no other module sees a
driver's exception. Each error carries a hint: the next step for the person who reads it.
"""

from __future__ import annotations


class ProcessorError(Exception):
    """An error in processor; the base class of all others.

    `hint` is the next step for the reader, "" if there is none; `str()` appends it in parentheses.
    """

    hint = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class ConfigError(ProcessorError):
    """A setting is wrong, so the processor does not start."""


class InvalidTransaction(ProcessorError, ValueError):
    """A transaction is invalid and was not submitted.

    The message says which field is wrong and why, the hint what would be right. `field` is the path
    of the field, such as "operations[0].table".
    """

    def __init__(self, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {problem}", hint=hint)
        self.field = field


class InvalidRead(ProcessorError, ValueError):
    """A read is invalid: its table, a column or the server to read from."""


class Unavailable(ProcessorError):
    """A server is unavailable. Nothing is lost; try again.

    `misconfigured` is True if it refuses the credentials or the rights of this process: a person
    has to act, and waiting does not help.
    """

    misconfigured = False


class RedisUnavailable(Unavailable):
    """Redis is unavailable. `sent` is True if it may have received a command.

    `timed_out` is True if it did not answer within the deadline.
    """

    sent = False
    timed_out = False


class DatabaseUnavailable(Unavailable):
    """PostgreSQL is unavailable."""


class SubmitUnknown(RedisUnavailable):
    """The reply of Redis was lost: the transaction may or may not be in the buffer.

    Submitting the same transaction again is always safe: its id makes it one effect (rule 11).
    """

    def __init__(self, transaction_id: str, cause: str = "") -> None:
        super().__init__(
            f"transaction {transaction_id}: outcome of submit unknown"
            + (f": {cause}" if cause else ""),
            hint="submit the same transaction again; its id makes it one effect",
        )
        self.transaction_id = transaction_id


class BufferFull(ProcessorError):
    """The buffer accepts no new entries: it has reached its limit, or Redis its memory limit.

    `retry_after` is in seconds, as for an HTTP Retry-After header.
    """

    def __init__(self, message: str = "", *, retry_after: float = 1.0, hint: str = "") -> None:
        super().__init__(
            message, hint=hint or "answer 503 with Retry-After, and check that a processor runs"
        )
        self.retry_after = retry_after


class RedisRefused(ProcessorError):
    """Redis answered with an error. `code` is its first word (OOM, READONLY, NOPERM ...)."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    @property
    def refuses_rights(self) -> bool:
        """Whether Redis refuses the credentials, or lets our user not do this."""
        return self.code in ("NOAUTH", "NOPERM", "WRONGPASS")


class ReplicaLost(DatabaseUnavailable):
    """The replica is lost, or has not caught up since: it may lack writes."""

    hint = "read from another server, or omit replica"


#: SQLSTATEs that processor defines itself.
FENCED_STATE = "PR001"  # the function `fence`: another processor owns the lane
EXPECT_STATE = "PR002"  # the function `expect`: a different number of rows than expected
ENDS_SESSION_STATE = "PR003"  # a dead letter: crashed its PostgreSQL session on every attempt
ONE_BY_ONE_STATE = "PR004"  # raised and caught inside the function `isolate`
POSSIBLY_APPLIED_STATE = "PR005"  # a dead letter: perhaps applied before Redis was restored

#: What the states mean that users see; PostgreSQL's documentation does not list them.
_OWN_STATES = {
    FENCED_STATE: "another processor owns the lane",
    EXPECT_STATE: "an update or delete matched a different number of rows than it expects",
}


def refusal(sqlstate: str, *, table: str = "", column: str = "", constraint: str = "") -> str:
    """Describe what PostgreSQL refused, with names and without values (rule 19)."""
    names = (("table", table), ("column", column), ("constraint", constraint))
    text = " ".join([f"SQLSTATE {sqlstate}", *(f"{kind} {name}" for kind, name in names if name)])
    meaning = _OWN_STATES.get(sqlstate)
    return f"{text}: {meaning}" if meaning else text


class DatabaseError(ProcessorError):
    """PostgreSQL refused a statement; the session is still open.

    Only names are shown (rule 19): `sqlstate`, `schema`, `table`, `column`, `constraint`.
    PostgreSQL's own message can contain values; it is in `detail`, which only the dead letter
    stores. `in_transaction`: the session is in a failed transaction, which is certainly not
    committed (rule 13).
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

    @property
    def refuses_rights(self) -> bool:
        """Whether the role may not do this, or may not connect: 42501, classes 28 and 3D."""
        return self.sqlstate == "42501" or self.sqlstate[:2] in ("28", "3D")


class SchemaMissing(DatabaseUnavailable):
    """The schema `processor` is missing, or belongs to another release."""

    hint = "run `processor init-db` with a role that may create schemas"


class WrongDatabase(DatabaseUnavailable):
    """The buffer is drained into another database than the one that is connected."""


class RightsMissing(DatabaseUnavailable):
    """The role lacks privileges on the schema `processor`."""

    hint = "grant the role of database.dsn the privileges that `processor print schema` lists"
    misconfigured = True


class PoolerDetected(DatabaseUnavailable):
    """A transaction pooler is between the processor and PostgreSQL."""

    hint = (
        "the processor needs sessions of its own: let database.dsn and replicas.servers lead to"
        " PostgreSQL itself, or to a pool in session mode"
    )


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
    """The transaction was committed on a primary that a failover replaced, and is lost with it."""

    def __init__(self, transaction_id: str, reason: str = "") -> None:
        super().__init__(
            f"transaction {transaction_id} is lost" + (f": {reason}" if reason else ""),
            hint="submit it again; its id makes it one effect. `settle: replicated` prevents this",
        )
        self.transaction_id = transaction_id
        self.reason = reason


class ReplicaBehind(ProcessorError):
    """No server that may be read from has the transaction yet.

    `catch_up` is the number of seconds until one is expected to have it, None if unknown.
    """

    def __init__(self, message: str = "", *, catch_up: float | None = None) -> None:
        when = "" if catch_up is None else f" in about {catch_up:.1f} s"
        super().__init__(message, hint=f"ask again{when}, wait longer, or read from the primary")
        self.catch_up = catch_up


class WaitTimeout(ProcessorError, TimeoutError):
    """The transaction did not reach the awaited status in time; it is still being processed."""


class NotRunning(ProcessorError):
    """No processor is running here."""


class AlreadyRunning(ProcessorError):
    """A processor is already running here."""
