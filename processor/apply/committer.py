"""A session's way of committing: one string, one round trip, and proof that it was committed.

The string is [ROLLBACK unless known idle] [PREPAREs] BEGIN; body; COMMIT; one row with the batch's
own nonce, LSN and insert LSN. It succeeded only if the session is idle afterwards *and* that nonce
came back: psycopg2 reports success when a comment swallowed the COMMIT (rule 12).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from processor import crashpoint
from processor.config.settings import Database as Settings
from processor.connections.postgres_session import PostgresSession, Row
from processor.connections.wal_position import Position, after_commit
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import lane_rows, outcomes
from processor.ledger.lane_rows import Ownership
from processor.replicas.commit_marks import CommitMarks
from processor.sql.catalog import Catalog
from processor.sql.renderer import Renderer
from processor.transaction.entry import Entry

_TAIL = (
    "SELECT '{}', pg_current_wal_lsn()::text, pg_current_wal_insert_lsn()::text,"
    " current_setting('synchronous_commit'), current_setting('processor.failures', true),"
    " left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),"
    " current_setting('processor.xid', true)"
)

#: Names are not looked up anew more often than this, seconds, nor more shapes kept than this.
_OFTEN = 1.0
_SHAPES = 1_000

#: No time limit of a transaction prolongs the deadline of its call by more a statement, seconds.
_LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a batch was committed, and the failures that were isolated in it, as JSON."""

    position: Position
    failures: str


class Committer:
    """The writing connection with what is prepared on it."""

    def __init__(
        self, database: PostgresSession, settings: Settings, marks: CommitMarks | None = None
    ) -> None:
        """`marks` are told of each commit, if replicas are followed."""
        self.database = database
        self._marks = marks
        self.catalog = Catalog()
        self.renderer = Renderer(self.catalog, settings.tables, prepares=settings.prepare)
        self._settings = settings
        self._generation = -1
        self._ledger_prepared = False
        self._stale = False
        self._renewed = float("-inf")

    @property
    def prepares(self) -> bool:
        """Whether shapes are prepared on the server."""
        return bool(self._settings.prepare)

    def begin(self) -> None:
        """Make ready for a batch: a new session has nothing prepared and knows no table."""
        if self.renderer.size > _SHAPES:
            # Producers that leave columns out make ever new shapes.
            self.forget_names()
        if self._generation != self.database.generation:
            self._generation = self.database.generation
            self.renderer = Renderer(
                self.catalog, self._settings.tables, prepares=self._settings.prepare
            )
            self.catalog.forget()
            self._ledger_prepared = self._stale = False

    @property
    def mark(self) -> tuple[int, int]:
        """Equal as long as text that was written for this session may still be sent."""
        return self._generation, self.renderer.version

    def know(self, tables: set[str], *, anew: bool = False) -> None:
        """Look up the tables of a batch that were not met before, or all of them anew."""
        if anew and time.monotonic() - self._renewed >= _OFTEN:
            self.forget_names()
        if not all(map(self.catalog.known, tables)):
            self.settle_down()
            self.catalog.load(self.database, tables)

    def forget_names(self) -> None:
        """The catalog may have changed: look tables up anew, compile and prepare anew."""
        self.catalog.forget()
        self.renderer.forget()
        # Nobody calls the old names any more.
        self._stale = True
        self._renewed = time.monotonic()

    def settle_down(self) -> None:
        """Leave a failed transaction."""
        if self.database.alive and not self.database.idle:
            self.database.run("ROLLBACK")

    def commit(
        self,
        body: str,
        *,
        prepared: bool = False,
        extra: float = 0.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> Commit:
        """Commit the statements of `body` as one transaction.

        `prepared` says that the body EXECUTEs what the renderer and the ledger prepare;
        `extra` are seconds on top of the deadline of a call, `meanwhile` is called while the server
        works. Raises DatabaseError with the transaction not
        committed (or unknown, see `in_transaction`), DatabaseUnavailable with the outcome unknown.
        """
        nonce = os.urandom(8).hex()
        string = "".join((
            "" if self.database.idle else "ROLLBACK;",
            self._preparations() if prepared else "",
            "BEGIN;", body, "COMMIT;", _TAIL.format(nonce),
        ))  # fmt: skip
        try:
            self.database.send(string, deadline=self._settings.call_timeout + extra)
            crashpoint.reach("batch-sent")
            if meanwhile is not None:
                meanwhile()
            rows = self.database.receive()
        except DatabaseError:
            if prepared:
                # What this string prepared before it failed, and what not, is not known.
                self._stale = True
            raise
        if not self.database.idle or not rows or rows[0][0] != nonce:
            self.database.close()
            raise DatabaseUnavailable("the end of the batch did not come back")
        crashpoint.reach("batch-committed")
        return self._commit(rows[0])

    def least_limit(self, entries: Sequence[Entry]) -> float:
        """After how many seconds PostgreSQL may end a statement of these for its time limit."""
        usual = self._settings.statement_timeout
        return min(usual if entry.timeout is None else entry.timeout for entry in entries)

    def here(self) -> Commit:
        """The position of now: an upper bound for what the ledger knows already (rule 21)."""
        return self._commit(self.database.run(_TAIL.format(""))[0])

    def behind(self, owner: Ownership) -> Commit:
        """As `here`, by a commit of its own where replicas are followed: that they can show."""
        return self.here() if self._marks is None else self.commit(lane_rows.fence(owner, 0))

    def _commit(self, row: Row) -> Commit:
        _, current, insert, synchronous, failures, timeline, xid = row
        lsn = after_commit(current, insert, synchronous)
        position = Position(self.database.system, int(timeline, 16), lsn)
        if self._marks is not None and xid:
            self._marks.add(int(xid), position)
        return Commit(position, failures or "")

    def _preparations(self) -> str:
        text = ""
        if self._stale:
            text, self._stale, self._ledger_prepared = "DEALLOCATE ALL;", False, False
            self.renderer.unprepare()
        if not self._ledger_prepared:
            text, self._ledger_prepared = text + outcomes.PREPARED, True
        return text + self.renderer.prepare()


def prolonged(entries: Sequence[Entry]) -> float:
    """Seconds that entries with a time limit of their own may take beside all others."""
    limits = [(e.timeout, len(e.operations)) for e in entries if e.timeout is not None]
    return sum(min(max(limit, 0.0), _LONGEST) * statements for limit, statements in limits)
