"""A connection to PostgreSQL with a deadline on every call: the one on which the drain thread
writes, and, with `writes=False`, those on which primary and replicas are asked.

It runs psycopg2 in its asynchronous mode and waits for the socket itself: a call that outlives its
deadline is freed by cutting the socket, which no keepalive, `tcp_user_timeout` or
`statement_timeout` does when the peer's TCP stack is alive and its process is not (rule 18).
Drivers' exceptions leave this module only as errors of `processor.errors`.

DESIGN. `send` starts one string of statements and returns at once, `receive` waits for its last
result; the caller may prepare the next batch in between. After any failure `alive` tells whether
the session can still be used, and `DatabaseError.in_transaction` whether the failed transaction is
certainly not committed (rule 13).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

import psycopg2
import psycopg2.extensions as pg

from processor.config import addresses
from processor.config.settings import Database as Settings
from processor.connections import session_settings
from processor.connections.fork_guard import resolving
from processor.connections.wal_position import is_superseded
from processor.errors import DatabaseError, DatabaseUnavailable, PoolerDetected
from processor.telemetry.progress import Progress

Row = tuple[Any, ...]

_LEAST_VERSION = 140000
# What libpq says of a server before there is a session; any other sentence may quote the DSN.
_OF_SERVERS = re.compile(
    r"FATAL|connection (to|refused|timed out|reset)|could not translate host|timeout expired|"
    r"server (closed|does not support)|no route to host|network is unreachable|SSL error|"
    r"(root )?certificate|definition of service|fe_sendauth: no password|channel binding required|"
    r"authentication method requirement|(session|server) is (not )?(read-only|in hot standby)",
    re.IGNORECASE,
)


class PostgresSession:
    """A session, opened and used by one thread: on the primary, unless it only reads.

    `abort` alone may be called from another thread: it cuts the call in progress.
    """

    def __init__(
        self, settings: Settings, progress: Progress, *, application: str, writes: bool = True,
        primary: bool | None = None,
    ) -> None:  # fmt: skip
        """`primary`: no standby will do; as `writes` unless it is given."""
        self._settings = settings
        self._progress = progress
        self._application = application
        self._writes = writes
        self._primary = writes if primary is None else primary
        self._connection: Any = None
        self._cursor: Any = None
        self._socket: socket.socket | None = None
        self._deadline = 0.0
        self._previous: tuple[int, str] | None = None
        self._session: tuple[int, str] | None = None
        self.generation = 0
        self.place = ""
        self.server_version = 0
        self.system = ""
        #: Of the primary that it is; 0 on a standby, which does not tell it to everybody.
        self.timeline = 0
        #: System and timeline of the primary that was written to last: no older one is taken.
        self.newest: tuple[str, int] | None = None
        self.last_call = 0.0
        self.calls = 0

    @property
    def alive(self) -> bool:
        """Whether there is a session that may be used."""
        return self._connection is not None and not self._connection.closed

    @property
    def idle(self) -> bool:
        """Whether the session is known to be in no transaction."""
        return self.alive and (
            self._connection.info.transaction_status == pg.TRANSACTION_STATUS_IDLE
        )

    def connect(self) -> None:
        """Open the session and pin its settings (rules 4 and 6).

        Of several hosts in `database.dsn` the first that will do is taken. Raises
        DatabaseUnavailable (to write, also for a standby or a server that only reads) and
        PoolerDetected.
        """
        hosts = addresses.hosts(self._settings.dsn)
        for number, host in enumerate(hosts, 1):
            self.close()
            # libpq tries them in turn itself, but waits for a dead one without end in this mode.
            self._deadline = time.monotonic() + self._settings.connect_timeout / len(hosts)
            try:
                self._open(host)
                break
            except DatabaseUnavailable:
                self.close()
                if number == len(hosts):
                    raise
        self.generation += 1
        self._end_previous()

    def _open(self, host: dict[str, Any]) -> None:
        self.place = addresses.host_port(self._settings.dsn, host)
        try:
            with resolving():
                self._connection = psycopg2.connect(
                    self._settings.dsn, async_=1, application_name=self._application,
                    client_encoding="UTF8", keepalives_idle=10, keepalives_interval=3, **host)
            self._take_socket()
            self._wait()
            # libpq may have gone on to another address of the host.
            self._take_socket()
            self._cursor = self._connection.cursor()
            self._pin()
        except (psycopg2.Error, DatabaseError) as error:
            raise DatabaseUnavailable(
                f"cannot open a session of PostgreSQL at {self.place}: {_phrase(error)}"
            ) from None

    def _take_socket(self) -> None:
        before, self._socket = self._socket, socket.socket(fileno=os.dup(self._connection.fileno()))
        if before is not None:
            before.close()

    def _pin(self) -> None:
        rows = self.run(session_settings.LOOK)
        self.server_version, in_recovery, read_only, pid, started, self.system, timeline = rows[0]
        self.timeline = int(timeline, 16)
        if self.server_version < _LEAST_VERSION:
            raise DatabaseUnavailable(
                f"PostgreSQL {self.server_version // 10000} at {self.place} is too old",
                hint="use PostgreSQL 14 or later",
            )
        if (self._primary and in_recovery) or (self._writes and read_only):
            raise DatabaseUnavailable(
                f"the server at {self.place} only reads (25006)",
                hint="point database.dsn at the primary",
            )
        newest = self.newest if self._primary else None
        if newest and is_superseded((self.system, self.timeline), newest):
            raise DatabaseUnavailable(
                f"the server at {self.place} is on timeline {self.timeline}, but {newest[1]} was"
                " written to since: an old primary is back",
                hint="point database.dsn at the new one; if this one is meant, delete the key"
                " <namespace>:primary in Redis",
            )
        if not self._writes:
            self.run(session_settings.reading(self._settings))
            return
        if pid != self._connection.info.backend_pid:
            # A pooler answers with a process id of its own making; behind one, advisory locks
            # become re-entrant and two processors would own one lane (rule 6).
            raise PoolerDetected
        self._session = (pid, started)
        if self.run(session_settings.writing(self._settings))[0][0] != pid:
            raise PoolerDetected

    def _end_previous(self) -> None:
        # A session that was cut can still hold its locks, and the new one would wait on them.
        previous, self._previous = self._previous, None
        if previous is not None:
            self.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE pid = {previous[0]} AND backend_start = '{previous[1]}'"
                " AND usename = current_user"
            )

    def run(self, sql: str, *, deadline: float | None = None) -> list[Row]:
        """Send a string of statements and wait for the rows of the last one.

        `deadline` is in seconds from now (default: `database.call_timeout`). Raises DatabaseError
        if the server refused, DatabaseUnavailable if the session is gone.
        """
        self.send(sql, deadline=deadline)
        return self.receive()

    def send(self, sql: str, *, deadline: float | None = None) -> None:
        """Start a string of statements; `receive` must follow. Raises DatabaseUnavailable."""
        if not self.alive:
            raise DatabaseUnavailable("no session")
        limit = self._settings.call_timeout if deadline is None else deadline
        self._deadline = time.monotonic() + limit
        self._progress.declare(self._deadline)
        try:
            self._cursor.execute(sql)
        except psycopg2.Error as error:
            raise self._translate(error) from None

    def receive(self) -> list[Row]:
        """The rows of the last statement of the string that was sent; errors as in `run`."""
        try:
            self._wait()
            rows = self._cursor.fetchall() if self._cursor.description else []
        except psycopg2.Error as error:
            raise self._translate(error) from None
        self.last_call = time.monotonic()
        self.calls += 1
        self._progress.made()
        return rows

    def abort(self) -> None:
        """Cut the socket; the thread that waits on it gets DatabaseUnavailable at once."""
        duplicate = self._socket
        if duplicate is not None:
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the session, if there is one; never raises."""
        connection, self._connection, self._cursor = self._connection, None, None
        duplicate, self._socket = self._socket, None
        if connection is not None and not connection.closed:
            connection.close()
        if duplicate is not None:
            duplicate.close()

    def drop(self) -> None:
        """Forget the session without closing it: after fork it is the parent's (P6)."""
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
                    f"PostgreSQL at {self.place} gives no answer within the deadline of the call"
                )

    def _cut(self) -> None:
        self.abort()
        if self._session is not None:
            # A connect that times out must not make us forget whom it was to follow.
            self._previous, self._session = self._session, None
        self.close()

    def _translate(self, error: psycopg2.Error) -> DatabaseError | DatabaseUnavailable:
        if not self.alive or self._broken():
            self._cut()
            return DatabaseUnavailable(f"the session is gone: {_phrase(error)}")
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


# What a fork inherited: collected, it would send the server a goodbye on the parent's socket.
_inherited: list[Sequence[Any]] = []


def _phrase(error: Exception) -> str:
    """Words for an error that can hold no value: the SQLSTATE, or the class of the trouble."""
    if isinstance(error, DatabaseError):
        return str(error)
    code = getattr(error, "pgcode", None)
    if code:
        return f"SQLSTATE {code}"
    text = str(error).strip().partition("\n")[0]
    return text[:200] if _OF_SERVERS.match(text) else type(error).__name__


def _detail(error: psycopg2.Error) -> str:
    parts = (error.diag.message_primary, error.diag.message_detail, error.diag.context)
    return "\n".join(part for part in parts if part)[:2000]
