"""A PostgreSQL session: a connection whose server is known and whose settings are pinned.

The drain thread writes on one; sessions with `writes=False` query the primary and the replicas.
"""

from __future__ import annotations

import logging
from collections import deque

from psycopg2 import errorcodes

from processor.config import addresses
from processor.config.settings import Database as Settings
from processor.connections import pooler, session_settings
from processor.connections.postgres_connection import PostgresConnection, Row
from processor.connections.wal_position import is_superseded
from processor.errors import DatabaseUnavailable, PoolerDetected
from processor.telemetry.progress import Progress

__all__ = ["PostgresSession", "Row", "condition"]

log = logging.getLogger("processor.connections")

_MIN_VERSION = 140000
#: Sessions that were cut, whose backends may not have ended yet.
_MOST_PREVIOUS = 20


class PostgresSession(PostgresConnection):
    """A session on the primary, unless it only reads."""

    def __init__(
        self, settings: Settings, progress: Progress, *, application: str, writes: bool = True,
        primary: bool | None = None,
    ) -> None:  # fmt: skip
        """`primary`: refuse a standby (default: as `writes`)."""
        super().__init__(settings, progress, application=application)
        self._writes = writes
        self._primary = writes if primary is None else primary
        self._previous: deque[tuple[int, str]] = deque(maxlen=_MOST_PREVIOUS)
        self._session: tuple[int, str] | None = None
        self.generation = 0
        #: Whether the session leads through a pooler, which is in session mode.
        self.pooled = False
        self.server_version = 0
        self.system = ""
        #: The timeline of the primary; 0 on a standby, where an ordinary role cannot read it.
        self.timeline = 0
        #: System identifier and timeline of the primary last written to; an older one is refused.
        self.newest: tuple[str, int] | None = None
        #: The advisory locks that this session is to hold, as `ledger.lane_rows` took them.
        self.locks: set[int] = set()

    @property
    def activity(self) -> str:
        """A query for what this session does, for another one: state and application_name."""
        pid, started = self._session or (0, "-infinity")
        return (
            "SELECT state, application_name FROM pg_catalog.pg_stat_activity"
            f" WHERE pid OPERATOR(pg_catalog.=) {pid}"
            f" AND backend_start OPERATOR(pg_catalog.=) '{started}'"
        )

    def connect(self) -> None:
        """Open the session and pin its settings (rules 4 and 6).

        If `database.dsn` has several hosts, the first suitable one is used. Raises
        DatabaseUnavailable (a writing session also for a standby or a read-only server) and
        PoolerDetected, if others are given the session as well.
        """
        hosts = addresses.hosts(self._settings.dsn)
        for number, host in enumerate(hosts, 1):
            # libpq would try the hosts in turn, but in this mode waits for a dead one indefinitely.
            try:
                self.open(host, self._settings.connect_timeout / len(hosts))
                break
            except DatabaseUnavailable:
                self.close()
                if number == len(hosts):
                    raise
        self.generation += 1
        self.locks.clear()
        self._end_previous()
        log.debug("connected to PostgreSQL at %s as %s", self.address, self._application)

    def _greet(self) -> None:
        rows = self.run(session_settings.LOOK)
        self.server_version, in_recovery, read_only, pid, started, self.system, timeline = rows[0]
        self.timeline = int(timeline, 16)
        # Before anything is set: the session may be another client's in a moment.
        self.pooled = pooler.is_between(self, pid)
        if self.pooled and pooler.is_shared(self, self._settings, pid):
            raise PoolerDetected(f"a transaction pooler is between us and {self.address}")
        if self.server_version < _MIN_VERSION:
            raise DatabaseUnavailable(
                f"PostgreSQL {self.server_version // 10000} at {self.address} is too old",
                hint="use PostgreSQL 14 or later",
            )
        if (self._primary and in_recovery) or (self._writes and read_only):
            hint = "point database.dsn at the primary"
            if not in_recovery:
                hint += ", or reset default_transaction_read_only for its role or database"
            raise DatabaseUnavailable(
                f"PostgreSQL at {self.address} is read-only (25006)", hint=hint
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
        self._session = (pid, started)
        if self.run(session_settings.writing(self._settings))[0][0] != pid:
            raise PoolerDetected(f"a transaction pooler is between us and {self.address}")

    def _end_previous(self) -> None:
        # A backend whose session was cut may still hold locks. It is listed until this is answered.
        for previous in list(self._previous):
            self.run(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
                f" WHERE pid = {previous[0]} AND backend_start = '{previous[1]}'"
                " AND usename = current_user"
            )
            self._previous.remove(previous)

    def _cut(self) -> None:
        if self._session is not None:
            # Kept when a later connect times out: that one has no session of its own yet.
            self._previous.append(self._session)
        self._session = None
        super()._cut()


def condition(sqlstate: str) -> str:
    """Return PostgreSQL's name of a SQLSTATE, such as undefined_table; "" if it has none."""
    try:
        return str(errorcodes.lookup(sqlstate)).lower()
    except KeyError:
        return ""
