"""A PostgreSQL session with a deadline on every call.

The drain thread writes on one; sessions with `writes=False` query the primary and the replicas.

psycopg2 runs in its asynchronous mode, and this module waits for the socket. A call that exceeds
its deadline is ended by shutting the socket down. No keepalive, `tcp_user_timeout` or
`statement_timeout` does that while the peer's TCP stack works and its process does not (rule 18).
The driver's exceptions leave this module only as errors of `processor.errors`.

DESIGN. `send` starts one string of statements and returns at once; `receive` waits for its last
result. The caller may prepare the next batch in between. After any failure, `alive` says whether
the session can still be used, and `DatabaseError.in_transaction` whether the failed transaction is
certainly not committed (rule 13).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg2
import psycopg2.extensions as pg
from psycopg2 import errorcodes

from processor.config import addresses
from processor.config.settings import Database as Settings
from processor.connections import session_settings
from processor.connections.fork_guard import resolving
from processor.connections.type_casters import TypeCasters
from processor.connections.wal_position import is_superseded
from processor.errors import DatabaseError, DatabaseUnavailable, PoolerDetected
from processor.telemetry.progress import Progress

log = logging.getLogger("processor.connections")

Row = tuple[Any, ...]

_MIN_VERSION = 140000
#: Sessions that were cut, whose backends may not have ended yet.
_MOST_PREVIOUS = 20
# libpq's messages about a server before a session exists. Any other message may quote the DSN.
_SAFE_MESSAGE = re.compile(
    r"FATAL|connection (to|refused|timed out|reset)|could not translate host|timeout expired|"
    r"server (closed|does not support)|no route to host|network is unreachable|SSL error|"
    r"(root )?certificate|definition of service|fe_sendauth: no password|channel binding required|"
    r"authentication method requirement|(session|server) is (not )?(read-only|in hot standby)",
    re.IGNORECASE,
)


class PostgresSession:
    """A session, opened and used by one thread: on the primary, unless it only reads.

    Only `abort` may be called from another thread; it interrupts the call in progress.
    """

    def __init__(
        self, settings: Settings, progress: Progress, *, application: str, writes: bool = True,
        primary: bool | None = None,
    ) -> None:  # fmt: skip
        """`primary`: refuse a standby (default: as `writes`)."""
        self._settings = settings
        self._progress = progress
        self._application = application
        self._writes = writes
        self._primary = writes if primary is None else primary
        self._connection: Any = None
        self._cursor: Any = None
        self._casters: TypeCasters | None = None
        self._socket: socket.socket | None = None
        self._limit = self._deadline = 0.0
        self._previous: deque[tuple[int, str]] = deque(maxlen=_MOST_PREVIOUS)
        self._session: tuple[int, str] | None = None
        self.generation = 0
        self.address = ""
        self.server_version = 0
        self.system = ""
        #: The timeline of the primary; 0 on a standby, where an ordinary role cannot read it.
        self.timeline = 0
        #: System identifier and timeline of the primary last written to; an older one is refused.
        self.newest: tuple[str, int] | None = None
        #: The advisory locks that this session is to hold, as `ledger.lane_rows` took them.
        self.locks: set[int] = set()
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

    def connect(self) -> None:
        """Open the session and pin its settings (rules 4 and 6).

        If `database.dsn` has several hosts, the first suitable one is used. Raises
        DatabaseUnavailable (a writing session also for a standby or a read-only server) and
        PoolerDetected.
        """
        hosts = addresses.hosts(self._settings.dsn)
        for number, host in enumerate(hosts, 1):
            self.close()
            # libpq would try the hosts in turn, but in this mode waits for a dead one indefinitely.
            self._limit = self._settings.connect_timeout / len(hosts)
            self._deadline = time.monotonic() + self._limit
            try:
                self._open(host)
                break
            except DatabaseUnavailable:
                self.close()
                if number == len(hosts):
                    raise
        self.generation += 1
        self.locks.clear()
        self._end_previous()
        log.debug("connected to PostgreSQL at %s as %s", self.address, self._application)

    def _open(self, host: dict[str, Any]) -> None:
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
            self._pin()
        except (psycopg2.Error, DatabaseError) as error:
            raise DatabaseUnavailable(
                f"cannot connect to PostgreSQL at {self.address}: {_safe_message(error)}"
            ) from None

    def _take_socket(self) -> None:
        before, self._socket = self._socket, socket.socket(fileno=os.dup(self._connection.fileno()))
        if before is not None:
            before.close()

    def _pin(self) -> None:
        rows = self.run(session_settings.LOOK)
        self.server_version, in_recovery, read_only, pid, started, self.system, timeline = rows[0]
        self.timeline = int(timeline, 16)
        if self.server_version < _MIN_VERSION:
            raise DatabaseUnavailable(
                f"PostgreSQL {self.server_version // 10000} at {self.address} is too old",
                hint="use PostgreSQL 14 or later",
            )
        if (self._primary and in_recovery) or (self._writes and read_only):
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.address} is read-only (25006)",
                hint="point database.dsn at the primary",
            )
        newest = self.newest if self._primary else None
        if newest and is_superseded((self.system, self.timeline), newest):
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.address} is an old primary: it is on timeline"
                f" {self.timeline}, and timeline {newest[1]} has been written to",
                hint="point database.dsn at the new primary; to use this one, delete the key"
                " <namespace>:primary in Redis",
            )
        if not self._writes:
            self.run(session_settings.reading(self._settings))
            return
        if pid != self._connection.info.backend_pid:
            # A pooler reports a process id of its own. Behind a pooler, advisory locks become
            # re-entrant, and two processors would own one lane (rule 6).
            raise PoolerDetected
        self._session = (pid, started)
        if self.run(session_settings.writing(self._settings))[0][0] != pid:
            raise PoolerDetected

    def _end_previous(self) -> None:
        # A backend whose session was cut may still hold locks. It is listed until this is answered.
        for previous in list(self._previous):
            self.run(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
                f" WHERE pid = {previous[0]} AND backend_start = '{previous[1]}'"
                " AND usename = current_user"
            )
            self._previous.remove(previous)

    @property
    def encoding(self) -> str:
        """The encoding of the database, as PostgreSQL calls it; the session must be connected."""
        return str(self._connection.info.parameter_status("server_encoding"))

    def run(self, sql: str, *, deadline: float | None = None) -> list[Row]:
        """Send a string of statements, wait, and return the rows of the last one.

        `deadline` is in seconds from now (default: `database.call_timeout`). Raises DatabaseError
        if PostgreSQL refused a statement, DatabaseUnavailable if the session is lost.
        """
        self.send(sql, deadline=deadline)
        return self.receive()

    def send(self, sql: str, *, deadline: float | None = None) -> None:
        """Start a string of statements; `receive` must follow. Raises DatabaseUnavailable."""
        if not self.alive:
            raise DatabaseUnavailable("not connected to PostgreSQL")
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
        connection = self._connection
        while True:
            state = connection.poll()
            if state == pg.POLL_OK:
                return
            remaining = self._deadline - time.monotonic()
            events = select.POLLIN if state == pg.POLL_READ else select.POLLOUT
            poller = select.poll()
            poller.register(connection.fileno(), events)
            if remaining <= 0 or not poller.poll(remaining * 1000):
                self._cut()
                raise DatabaseUnavailable(
                    f"PostgreSQL at {self.address} did not respond within {self._limit:g} s"
                )

    def _cut(self) -> None:
        self.abort()
        if self._session is not None:
            # Kept when a later connect times out: that one has no session of its own yet.
            self._previous.append(self._session)
        self._session = None
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


def condition(sqlstate: str) -> str:
    """Return PostgreSQL's name of a SQLSTATE, such as undefined_table; "" if it has none."""
    try:
        return str(errorcodes.lookup(sqlstate)).lower()
    except KeyError:
        return ""


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


def _detail(error: psycopg2.Error) -> str:
    parts = (error.diag.message_primary, error.diag.message_detail, error.diag.context)
    return "\n".join(part for part in parts if part)[:2000]
