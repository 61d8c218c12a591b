"""One read: what is pending, then rows and ledger in one statement, then both merged (rule 32).

The pending writes come from Redis first; then one statement on the server gives the rows and which
of those writes its ledger holds; the others are applied in memory. Nothing pending: the SELECT
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processor.buffer.overlay import Overlay, Pending
from processor.config.settings import PRIMARY
from processor.connections.redis_client import RedisConnection
from processor.connections.wal_position import Position, is_superseded
from processor.connections.wal_queries import replayed_lsn
from processor.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidRead,
    ReplicaLost,
    SchemaMissing,
)
from processor.reads import snapshot
from processor.reads.merge import Change, Line, Rows, replay
from processor.reads.pending import Decoded, Gathered, PendingWrites
from processor.reads.relations import Relation
from processor.reads.row_values import Undecided
from processor.reads.sessions import ReadSession
from processor.reads.snapshot import Changed, Snapshot
from processor.reads.typed_changes import Unnamed, met
from processor.sql.column_types import Unfit

#: Errors of what was prepared before the table changed: look it up anew and ask again.
_RENEW = ("0A000", "26000", "42P05", "42703", "42P01", "42804")
#: A standby cancels what stands in the way of replaying.
_CONTENTION = "40"


class Row(dict[str, Any]):
    """A row by its columns; `source` is the server it was read from, or "buffer" if pending writes
    made or changed it, `complete` as of all the rows."""

    __slots__ = ("complete", "source")

    def __init__(self, values: Mapping[str, Any], source: str, complete: bool) -> None:
        super().__init__(values)
        self.source = source
        self.complete = complete


class RowList(list[Row]):
    """Rows and the server they were read from. `complete` is False while something is pending that
    could touch the table and of which only PostgreSQL knows what it does."""

    __slots__ = ("complete", "source")

    def __init__(self, rows: Iterable[Row], source: str, complete: bool) -> None:
        super().__init__(rows)
        self.source = source
        self.complete = complete


class NotShown(Exception):
    """This server does not have the write that was asked for, and the overlay neither."""


@dataclass(frozen=True, slots=True)
class Question:
    """One read."""

    table: str
    where: dict[str, Any]
    after: str | None


class MergedRead:
    """One read on one session."""

    def __init__(
        self, keys: Overlay, decoded: Decoded, redis: RedisConnection, session: ReadSession,
        asked: Question, choosing: bool,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._decoded = decoded
        self._redis = redis
        self._session = session
        self._asked = asked
        self._choosing = choosing

    def run(self) -> RowList:
        """Ask; and once more if the tables are not what they were."""
        session, anew = self._session, self._session.stale()
        if anew:
            session.renew()
        for last in (False, False, True):
            try:
                return self._ask(anew or last)
            except Unnamed as unknown:
                session.renew(str(unknown))
                anew = True
            except Changed:
                session.renew()
            except DatabaseError as error:
                if last or not error.sqlstate.startswith((*_RENEW, _CONTENTION)):
                    raise self._refused(error) from None
                session.renew()
            except Unfit as error:
                raise InvalidRead(f"where: {error}") from None
        raise DatabaseUnavailable(f"table {self._asked.table} changes all the time")

    def _refused(self, error: DatabaseError) -> Exception:
        if error.sqlstate in ("42P01", "3F000"):
            # The declared table is there, or it would have been refused before.
            return SchemaMissing(f"{self._session.server} has no ledger: {error}")
        if error.sqlstate.startswith("22"):
            return InvalidRead(f"where: a value does not fit its column: {error}")
        return error

    def _ask(self, anew: bool) -> RowList:
        relation = self._session.relation(self._asked.table)
        typed = self._typed(relation, anew)
        mark = snapshot.by_mark(relation, self._asked.where) if relation.marked else None
        gathering = PendingWrites(self._redis, self._keys, self._decoded, self._session.marked)
        gathered = gathering.gather(self._asked.table, mark, self._asked.after)
        self._see_usable(gathered)
        ids = [each.id for each in gathered.pending] + gathered.statements
        if self._asked.after:
            ids.append(self._asked.after)
        if not ids:
            return self._plain(relation)
        try:
            return self._merged(relation, typed, gathered, ids, anew)
        finally:
            self._session.casting.forget(gathered.large)

    def _typed(self, relation: Relation, anew: bool) -> Mapping[str, Any]:
        try:
            return self._session.casting.values(met(relation, self._asked.where))
        except Undecided:
            return {}
        except Unnamed:
            if not anew:
                raise
            strange = sorted(self._asked.where.keys() - relation.columns.keys())
            raise InvalidRead(
                f"where: table {relation.name} has no column {strange[0]}"
            ) from None

    def _see_usable(self, gathered: Gathered) -> None:
        server = self._session.server
        if server == PRIMARY:
            database = self._session.database
            if is_superseded((database.system, database.timeline), gathered.primary):
                database.close()
                raise DatabaseUnavailable("this primary was left behind by a failover")
            return
        if gathered.primary and self._session.database.system != gathered.primary[0]:
            raise ReplicaLost(
                f"replica {server} belongs to another cluster than the primary",
                hint=f"see replicas.servers.{server}",
            )
        state = gathered.replicas[server].state if server in gathered.replicas else ""
        if state == "lost" or (state == "away" and self._choosing):
            raise ReplicaLost(f"replica {server} is {state}")
        missed = gathered.missed.get(server)
        if missed is not None and not self._replayed(missed):
            raise ReplicaLost(f"replica {server} was lost and is not back yet")

    def _replayed(self, missed: str) -> bool:
        """Whether it has what was taken out of the overlay while it was lost."""
        try:
            at = Position.parse(missed)
        except ValueError:
            return False  # Damaged; the clearing puts a position in its place.
        database = self._session.database
        replayed = replayed_lsn(database)
        return replayed is not None and database.system == at.system and replayed >= at.lsn

    def _plain(self, relation: Relation) -> RowList:
        where, server, run = self._asked.where, self._session.server, self._run
        if where.keys() >= set(relation.keys) and None not in where.values():
            prepared = self._session.prepared(relation, where)
            rows = prepared.rows(run(prepared.plain(where)))
        else:
            rows = snapshot.rows(relation, run(snapshot.plain(relation, where)))
        return RowList([Row(each, server, True) for each in rows], server, True)

    def _merged(
        self, relation: Relation, typed: Mapping[str, Any], gathered: Gathered,
        ids: Sequence[str], anew: bool,
    ) -> RowList:  # fmt: skip
        session = self._session
        scope = gathered.tables | gathered.rows.keys()
        changes = session.casting.changes(gathered.pending, session.means, scope, anew=anew)
        able = [
            pending for pending, change in zip(gathered.pending, changes, strict=True)
            if change.steps
        ]
        shown = self._shown(relation, typed, gathered, able, ids)
        if self._asked.after and not gathered.there and self._asked.after not in shown.known:
            raise NotShown
        complete = not gathered.unsure and shown.known.issuperset(gathered.statements)
        left = [change for change in changes if change.id not in shown.known]
        complete = complete and not _overtaken(changes, shown.known)
        tables = {
            name: Rows(session.relation(name), lines) for name, lines in shown.lines.items()
        }
        complete = replay(tables, left, session.casting.add) and complete
        return self._rows(tables[relation.name], typed, complete)

    def _shown(
        self, relation: Relation, typed: Mapping[str, Any], gathered: Gathered,
        able: Sequence[Pending], ids: Sequence[str],
    ) -> Snapshot:  # fmt: skip
        """The rows that are needed, and what the ledger knows, at one moment."""
        where, run = self._asked.where, self._run
        single = not gathered.tables and gathered.rows.keys() == {relation.name}
        if single and len(gathered.rows[relation.name]) == 1 and _told(relation, where, typed):
            key = {column: where[column] for column in relation.keys}
            prepared = self._session.prepared(relation, key)
            return prepared.read(run(prepared.merged(key, ids)))
        wanted = [(relation, self._conditions(relation, gathered, able))]
        for name in sorted((gathered.tables | gathered.rows.keys()) - {relation.name}):
            other = self._session.relation(name)
            wanted.append((other, self._conditions(other, gathered, able)))
        answer = run(snapshot.whole(wanted, where, ids))
        return snapshot.read([each for each, _ in wanted], answer)

    def _run(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            return self._session.database.run(sql)
        except (ValueError, OverflowError):
            raise InvalidRead(
                f"a row of {self._asked.table} holds a date that Python does not have",
                hint="Python has the years 1 to 9999; read that row as text, by a session of yours",
            ) from None

    def _conditions(
        self, relation: Relation, gathered: Gathered, able: Sequence[Pending]
    ) -> list[Mapping[str, Any]] | None:
        """Whatever of a table the read or a pending write may meet; None: all of it."""
        own = relation.name == self._asked.table
        if own and not self._asked.where:
            return None
        marks = gathered.rows.get(relation.name)
        found: list[Mapping[str, Any]] = [self._asked.where] if own else []
        for pending in able:
            for operation in pending.operations:
                if relation in self._session.means(operation.table):  # type: ignore[union-attr]
                    found += snapshot.conditions(relation, operation, marks)
        return found

    def _rows(self, rows: Rows, typed: Mapping[str, Any], complete: bool) -> RowList:
        """The rows that the read is about, after all that is pending."""
        server = self._session.server
        meets: Callable[[Line], bool | None]
        if self._asked.where and not _told(rows.relation, self._asked.where, typed):
            # Only the server can compare: it did so, with the columns as they were.
            columns = self._asked.where.keys()
            meets = lambda line: None if line.written & columns else line.matched  # noqa: E731
        else:
            found = {id(line) for line in rows.find(typed)} if typed else None
            meets = lambda line: found is None or id(line) in found  # noqa: E731
        met_lines = [(line, meets(line)) for line in rows.lines]
        complete = complete and all(answer is not None for _, answer in met_lines)
        return RowList(
            [
                Row(line.values, "buffer" if line.written else server, complete)
                for line, answer in met_lines if answer
            ],
            server, complete,
        )  # fmt: skip


def _overtaken(changes: Sequence[Change], known: Collection[str]) -> bool:
    """Whether something is left that came before what is committed: it failed in its turn, and
    nobody knows whether it will again."""
    left = False
    for change in changes:
        if left and change.id in known:
            return True
        left = left or (bool(change.steps) and change.id not in known)
    return False


def _told(relation: Relation, where: Mapping[str, Any], typed: Mapping[str, Any]) -> bool:
    """Whether Python can say which rows meet the read's condition."""
    return len(typed) == len(where) and all(
        value is None or relation.comparable(name) for name, value in where.items()
    )
