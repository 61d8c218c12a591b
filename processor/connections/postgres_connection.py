"""A connection to PostgreSQL with a deadline on every call.

psycopg2 runs in its asynchronous mode, and this module waits for the socket. A call that exceeds
its deadline is ended by shutting the socket down. No keepalive, `tcp_user_timeout` or
`statement_timeout` does that while the peer's TCP stack works and its process does not (rule 18).
The driver's exceptions leave this module only as errors of `processor.errors`.

DESIGN. `send` starts one string of statements and returns at once; `receive` waits for its last
result. The caller may prepare the next batch in between. After any failure, `alive` says whether
the connection can still be used, and `DatabaseError.in_transaction` whether the failed transaction
is certainly not committed (rule 13).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psycopg2
import psycopg2.extensions as pg

from processor.config import addresses
from processor.config.settings import Database as Settings
from processor.connections.fork_guard import resolving
from processor.connections.type_casters import TypeCasters
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.telemetry.progress import Progress

Row = tuple[Any, ...]

# libpq's messages about a server before a session exists. Any other message may quote the DSN.
_SAFE_MESSAGE = re.compile(
    r"FATAL|connection (to|refused|timed out|reset)|could not translate host|timeout expired|"
    r"server (closed|does not support)|no route to host|network is unreachable|SSL error|"
    r"(root )?certificate|definition of service|fe_sendauth: no password|channel binding required|"
    r"authentication method requirement|(session|server) is (not )?(read-only|in hot standby)",
    re.IGNORECASE,
)


class Watch(Protocol):
    """Decides how long to wait for a call that may take long."""

    @property
    def deadline(self) -> float:
        """When to give up, as things stand (monotonic seconds)."""

    @property
    def look_at(self) -> float:
        """When to call `look` (monotonic seconds)."""

    def look(self) -> bool:
        """Return whether to wait longer."""


class PostgresConnection:
    """A connection to one server, opened and used by one thread.

    Only `abort` may be called from another thread; it interrupts the call in progress.
    """

    def __init__(self, settings: Settings, progress: Progress, *, application: str) -> None:
        self._settings = settings
        self._progress = progress
        self._application = application
        self._connection: Any = None
        self._cursor: Any = None
        self._casters: TypeCasters | None = None
        self._socket: socket.socket | None = None
        self._limit = self._deadline = 0.0
        self._watch: Watch | None = None
        self._host: Mapping[str, Any] = {}
        self.address = ""
        self.last_call = 0.0
        self.calls = 0

    @property
    def alive(self) -> bool:
        """Whether the session is open and may be used."""
        return self._connection is not None and not self._connection.closed

    @property
    def idle(self) -> bool:
        """Whether the session is known to be outside a transaction."""
        return self.alive and (
            self._connection.info.transaction_status == pg.TRANSACTION_STATUS_IDLE
        )

    def open(self, host: Mapping[str, Any], limit: float) -> None:
        """Connect within `limit` seconds to the host of `database.dsn` that `host` selects.

        Raises DatabaseUnavailable.
        """
        self.close()
        self._watch = None
        self._limit, self._deadline = limit, time.monotonic() + limit
        self._host = host
        self.address = addresses.host_port(self._settings.dsn, host)
        try:
            with resolving():
                self._connection = psycopg2.connect(
                    self._settings.dsn, async_=1, application_name=self._application,
                    client_encoding="UTF8", keepalives_idle=10, keepalives_interval=3, **host)
            self._take_socket()
            self._wait()
            # libpq may have tried another address of the host by now.
            self._take_socket()
            self._casters = TypeCasters(self._connection)
            self._cursor = self._connection.cursor()
            self._greet()
        except (psycopg2.Error, DatabaseError) as error:
            failed = DatabaseUnavailable(
                f"cannot connect to PostgreSQL at {self.address}: {_safe_message(error)}"
            )
            failed.misconfigured = _is_refused(error)
            raise failed from None

    def _greet(self) -> None:
        """Begin the session: a subclass asks who the server is, and pins settings."""

    def _take_socket(self) -> None:
        before, self._socket = self._socket, socket.socket(fileno=os.dup(self._connection.fileno()))
        if before is not None:
            before.close()

    @property
    def encoding(self) -> str:
        """The encoding of the database, as PostgreSQL calls it; it must be connected."""
        return str(self._connection.info.parameter_status("server_encoding"))

    @property
    def reported_pid(self) -> int:
        """The process id that the server, or a pooler in its place, reported at the start."""
        return int(self._connection.info.backend_pid)

    @property
    def dsn_here(self) -> str:
        """The DSN of the server that it is connected to."""
        host = dict(self._host)
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            # The name of a host may lead to several servers.
            host["hostaddr"] = self._socket.getpeername()[0]
        return addresses.with_host(self._settings.dsn, host)

    def run(self, sql: str, *, deadline: float | None = None) -> list[Row]:
        """Send a string of statements, wait, and return the rows of the last one.

        `deadline` is in seconds from now (default: `database.call_timeout`). Raises DatabaseError
        if PostgreSQL refused a statement, DatabaseUnavailable if the session is lost.
        """
        self.send(sql, deadline=deadline)
        return self.receive()

    def send(self, sql: str, *, deadline: float | None = None, watch: Watch | None = None) -> None:
        """Start a string of statements; `receive` must follow. Raises DatabaseUnavailable.

        With a `watch` the deadline is what it says.
        """
        if not self.alive:
            raise DatabaseUnavailable("not connected to PostgreSQL")
        self._watch = watch
        self._limit = self._settings.call_timeout if deadline is None else deadline
        self._deadline = time.monotonic() + self._limit
        self._progress.declare(self._deadline)
        try:
            self._cursor.execute(sql)
        except psycopg2.Error as error:
            raise self._translate(error) from None

    def receive(self) -> list[Row]:
        """Wait for the string that was sent; return the rows of its last statement.

        Raises as `run`.
        """
        try:
            if self._casters is not None:
                self._casters.hide_registered()
            self._wait()
            rows = self._cursor.fetchall() if self._cursor.description else []
        except psycopg2.Error as error:
            raise self._translate(error) from None
        self.last_call = time.monotonic()
        self.calls += 1
        self._progress.made()
        return rows

    def abort(self) -> None:
        """Shut the socket down; the thread that waits for it gets DatabaseUnavailable at once."""
        duplicate = self._socket
        if duplicate is not None:
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the session, if there is one. Never raises."""
        connection, self._connection, self._cursor = self._connection, None, None
        duplicate, self._socket = self._socket, None
        if connection is not None and not connection.closed:
            connection.close()
        if duplicate is not None:
            duplicate.close()

    def drop(self) -> None:
        """Drop the session without closing it: after a fork it belongs to the parent (P6)."""
        _inherited.append((self._connection, self._cursor, self._socket))
        self._connection = self._cursor = self._socket = None

    def _wait(self) -> None:
        connection, watch = self._connection, self._watch
        while (state := connection.poll()) != pg.POLL_OK:
            remaining = (watch.look_at if watch else self._deadline) - time.monotonic()
            events = select.POLLIN if state == pg.POLL_READ else select.POLLOUT
            poller = select.poll()
            poller.register(connection.fileno(), events)
            if remaining > 0 and poller.poll(remaining * 1000):
                continue
            if watch and watch.look():
                self._progress.declare(watch.deadline)
                continue
            self._cut()
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.address} did not respond within {self._limit:g} s"
            )

    def _cut(self) -> None:
        self.abort()
        self.close()

    def _translate(self, error: psycopg2.Error) -> DatabaseError | DatabaseUnavailable:
        if not self.alive or self._broken():
            self._cut()
            return DatabaseUnavailable(f"lost the connection to PostgreSQL: {_safe_message(error)}")
        self.last_call = time.monotonic()
        self._progress.made()
        diagnostics = error.diag
        return DatabaseError(
            error.pgcode or "XX000",
            schema=diagnostics.schema_name or "",
            table=diagnostics.table_name or "",
            column=diagnostics.column_name or "",
            constraint=diagnostics.constraint_name or "",
            detail=_detail(error),
            in_transaction=self._connection.info.transaction_status
            == pg.TRANSACTION_STATUS_INERROR,
        )

    def _broken(self) -> bool:
        info = self._connection.info
        unusable = (pg.TRANSACTION_STATUS_UNKNOWN, pg.TRANSACTION_STATUS_ACTIVE)
        return bool(info.status != 0 or info.transaction_status in unusable)


# Sessions inherited by a fork. Collecting them would send a goodbye on the parent's socket.
_inherited: list[Sequence[Any]] = []


def _safe_message(error: Exception) -> str:
    """Describe an error without values: its SQLSTATE, libpq's message about the server, or its
    class."""
    if isinstance(error, DatabaseError):
        return str(error)
    code = getattr(error, "pgcode", None)
    if code:
        return f"SQLSTATE {code}"
    text = str(error).strip().partition("\n")[0]
    return text[:200] if _SAFE_MESSAGE.match(text) else type(error).__name__


# What libpq says of a server that answers and does not let this role in; there is no SQLSTATE.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|is not permitted to log in"
    r"|(role|database) \".*\" does not exist|permission denied for database|requires a valid client"
).search


def _is_refused(error: psycopg2.Error | DatabaseError) -> bool:
    if isinstance(error, DatabaseError):
        return error.refuses_rights
    return bool(_REFUSED(str(error)))


def _detail(error: psycopg2.Error) -> str:
    parts = (error.diag.message_primary, error.diag.message_detail, error.diag.context)
    return "\n".join(part for part in parts if part)[:2000]
