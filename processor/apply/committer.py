"""Commits on the writing session: one string, one round trip, and proof of the commit.

The string is [ROLLBACK unless known idle] [PREPAREs] BEGIN; body; COMMIT; one row with the batch's
own nonce, LSN and insert LSN. It succeeded only if the session is idle afterwards *and* that nonce
came back: psycopg2 reports success when a comment swallowed the COMMIT (rule 12).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.config.settings import Database as Settings
from processor.connections import session_settings
from processor.connections.postgres_session import PostgresSession, Row
from processor.connections.server_probe import LongCall
from processor.connections.wal_position import Position, after_commit
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import lane_rows, outcomes
from processor.ledger.lane_rows import Ownership
from processor.replicas.commit_marks import CommitMarks
from processor.sql import table_versions
from processor.sql.catalog import Catalog, Refused
from processor.sql.renderer import Renderer
from processor.sql.table_versions import Watch
from processor.transaction import statements
from processor.transaction.entry import Entry

log = logging.getLogger("processor.apply")

_TAIL = (
    "SELECT '{}', pg_catalog.pg_current_wal_lsn()::text,"
    " pg_catalog.pg_current_wal_insert_lsn()::text,"
    " pg_catalog.current_setting('synchronous_commit'),"
    " pg_catalog.current_setting('processor.failures', true),"
    " pg_catalog.\"left\"(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8),"
    " pg_catalog.current_setting('processor.xid', true)"
)

#: What a transaction cannot undo of the session: its advisory locks, and the number of statements
#: that others than this package prepared.
_LEFT = (
    ", (SELECT pg_catalog.string_agg("
    "pg_catalog.concat_ws(' ', classid, objid, objsubid, mode), ',') FROM pg_catalog.pg_locks"
    " WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),"
    " (SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements"
    " WHERE name OPERATOR(pg_catalog.!~) '^processor_(ledger|t?[0-9]+|f[0-9]+_[0-9]+)$')"
)

#: Seconds between two tries to look up a table that PostgreSQL refused.
_REFRESH_INTERVAL = 1.0
#: Shapes and plans kept before all are compiled again.
_MOST_SHAPES = 1_000


@dataclass(frozen=True, slots=True)
class Commit:
    """The WAL position of a commit, and the failures that `isolate` found in it, as JSON."""

    position: Position
    failures: str


class Committer:
    """The writing session, with the tables it has looked up and the statements prepared on it."""

    def __init__(
        self, session: PostgresSession, settings: Settings, marks: CommitMarks | None = None
    ) -> None:
        """`marks` records the position of each commit, if replicas are followed."""
        self.session = session
        self._marks = marks
        self.catalog = Catalog()
        self._settings = settings
        self._restoring = session_settings.restoring(settings) + lane_rows.RECORD_XID
        self.renderer = self._new_renderer()
        self._generation = -1
        self._ledger_prepared = False
        self._stale = False
        self._new_watches: list[Watch] = []
        #: Whether the last proof may fail although no table has changed.
        self.proved_by_watches = False
        self._refreshed = float("-inf")

    @property
    def prepares(self) -> bool:
        """Whether statements are prepared on the server (`database.prepare`)."""
        return bool(self._settings.prepare)

    def begin(self) -> None:
        """Get ready for a batch. A new session has nothing prepared, so nothing is kept for it."""
        if self.renderer.size > _MOST_SHAPES:
            # Producers that omit columns create ever new shapes.
            self.forget_tables()
        if self._generation != self.session.generation:
            self._generation = self.session.generation
            self.renderer = self._new_renderer()
            self.catalog.forget()
            self._ledger_prepared = self._stale = False

    def _new_renderer(self) -> Renderer:
        return Renderer(
            self.catalog, self._settings.tables, prepares=self._settings.prepare,
            restoring=self._restoring, longest_timeout=self._settings.longest_timeout,
        )  # fmt: skip

    @property
    def text_version(self) -> tuple[int, int]:
        """Changes when text that was rendered for this session must no longer be sent."""
        return self._generation, self.renderer.version

    def look_up_tables(self, names: set[str]) -> None:
        """Look up the tables that are not in the catalog yet."""
        if not all(map(self.catalog.has, names)):
            self.roll_back()
            self.catalog.load(self.session, names)

    def refresh_tables(self, names: set[str]) -> bool:
        """Look the tables up again if one has changed; return whether one has (rule 17).

        A table that PostgreSQL refused to look up is asked for again, at most once a second.
        """
        self.roll_back()
        if not all(map(self.catalog.has, names)):
            self.look_up_tables(names)
            return True
        refused = any(isinstance(self.catalog.find(n), Refused) for n in names)
        if refused and time.monotonic() - self._refreshed >= _REFRESH_INTERVAL:
            self.forget_tables()
        elif self.catalog.is_current(self.session, names):
            return False
        else:
            self.forget_tables()
        self.look_up_tables(names)
        return True

    def proof(self, names: Collection[str], *, prepared: bool = False) -> str:
        """Return SQL that fails if a table has changed since it was looked up (rule 17).

        It is for the next `commit`, with the same `prepared`.
        """
        self.proved_by_watches = False
        if not prepared:
            return self.catalog.proof(names)
        if self._stale:
            self.catalog.unprepare()
        watches = self.catalog.watches(names)
        self._new_watches = [watch for watch in watches if not watch.prepared]
        if self._new_watches:
            return self.catalog.proof(names) + table_versions.watched(self._new_watches)
        self.proved_by_watches = True
        return "".join([watch.execute for watch in watches])

    def forget_tables(self) -> None:
        """Look up, compile and prepare everything again: tables may have changed."""
        self.catalog.forget()
        self.renderer.forget()
        # The statements prepared so far are never executed again.
        self._stale = True
        self._refreshed = time.monotonic()

    def roll_back(self) -> None:
        """End a failed transaction, if the session is in one."""
        if self.session.alive and not self.session.idle:
            self.session.run("ROLLBACK")

    def commit(
        self,
        body: str,
        *,
        prepared: bool = False,
        longest: float = 0.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Commit:
        """Commit the statements of `body` as one transaction.

        `prepared` says that the body EXECUTEs statements of the renderer and the ledger. `longest`
        is how long a statement may take beyond the deadline of a call, in seconds. `meanwhile` is
        called while the server works.

        Raises DatabaseError with the transaction not committed (or unknown, see `in_transaction`),
        and DatabaseUnavailable with the outcome unknown.
        """
        nonce = os.urandom(8).hex()
        # Text of statements contains what restores the session behind them.
        watched = statements.any_registered() and self._restoring in body.replace("''", "'")
        string = "".join((
            "" if self.session.idle else "ROLLBACK;",
            self._preparations() if prepared else "",
            "BEGIN;", body, "COMMIT;", _TAIL.format(nonce), _LEFT if watched else "",
        ))  # fmt: skip
        try:
            watch = LongCall(self.session, self._settings, longest) if longest else None
            self.session.send(string, watch=watch)
            crashpoint.reach("batch-sent")
            if meanwhile is not None:
                meanwhile()
            rows = self.session.receive()
        except DatabaseError:
            if prepared:
                # Which PREPAREs of this string ran before it failed is unknown.
                self._stale = True
            raise
        return self._confirmed(rows, nonce, watched=watched, prepared=prepared)

    def _confirmed(
        self, rows: Sequence[Row], nonce: str, *, watched: bool, prepared: bool
    ) -> Commit:
        if not self.session.idle or not rows or rows[0][0] != nonce:
            self.session.close()
            raise DatabaseUnavailable("PostgreSQL did not confirm the end of the batch")
        crashpoint.reach("batch-committed")
        if prepared:
            for watch in self._new_watches:
                watch.prepared = True
        if not watched:
            return self._commit(rows[0])
        *row, locks, strange = rows[0]
        self._restore(locks, strange)
        return self._commit(tuple(row))

    def _restore(self, locks: str | None, prepared: int) -> None:
        """Undo what registered statements left on the session beyond their transaction."""
        if prepared:
            self._stale = True
        changed = lane_rows.restore_locks(self.session, lane_rows.advisory_locks(locks))
        if changed:
            log.warning("registered statements changed %d advisory locks of the session, which were"
                        " restored: use pg_advisory_xact_lock", changed)

    def shortest_limit(self, entries: Sequence[Entry]) -> float:
        """Return after how many seconds PostgreSQL may cancel a statement of these entries."""
        usual = self._settings.statement_timeout
        return min(usual if entry.timeout is None else entry.timeout for entry in entries)

    def current_position(self) -> Commit:
        """Return the server's position now: no earlier than any commit in the ledger (rule 21)."""
        return self._commit(self.session.run(_TAIL.format(""))[0])

    def upper_bound(self, owner: Ownership) -> Commit:
        """Return a position no earlier than any commit in the ledger (rule 21).

        Where replicas are followed it is a commit of its own, which replicas can be seen to replay.
        """
        if self._marks is None:
            return self.current_position()
        return self.commit(lane_rows.fence(owner, 0))

    def _commit(self, row: Row) -> Commit:
        _, current, insert, synchronous, failures, timeline, xid = row
        lsn = after_commit(current, insert, synchronous)
        position = Position(self.session.system, int(timeline, 16), lsn)
        if self._marks is not None and xid:
            self._marks.add(int(xid), position)
        return Commit(position, failures or "")

    def _preparations(self) -> str:
        text = ""
        if self._stale:
            text, self._stale, self._ledger_prepared = "DEALLOCATE ALL;", False, False
            self.renderer.unprepare()
        if not self._ledger_prepared:
            text += outcomes.PREPARED
            self._ledger_prepared = True
        return text + self.renderer.prepare()


def has_own_limit(entries: Sequence[Entry]) -> bool:
    """Return whether an entry has a time limit of its own, which counts for each statement."""
    return any(entry.timeout is not None for entry in entries)


def longest_limit(entries: Sequence[Entry]) -> float:
    """Return the longest time limit that an entry has of its own, in seconds; 0 if none has one."""
    return max((0.0, *(entry.timeout for entry in entries if entry.timeout is not None)))
