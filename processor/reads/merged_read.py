"""One read: what is pending, then rows and ledger in one statement, then both merged (rule 32).

The pending writes come from Redis first. Then one statement on the server reads the rows and which
of those writes are in its ledger; the others are applied in memory. If nothing is pending, the
rows are read alone.
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
from processor.reads.merge import Change, MergedRow, TableRows, replay
from processor.reads.pending import PendingSet, PendingWrites, RecordCache
from processor.reads.relations import Relation
from processor.reads.row_values import JSON_NULL, Undecided
from processor.reads.sessions import ReadSession
from processor.reads.snapshot import Changed, Snapshot
from processor.reads.typed_changes import UnknownName, typed_where
from processor.sql.column_types import Unfit
from processor.sql.table_versions import CHANGED_STATE

#: Errors of statements prepared before the table changed: look the table up and ask again.
_REFRESH = ("0A000", "26000", "42P05", "42703", "42P01", "42804", "42883", CHANGED_STATE)
#: A standby cancels queries that conflict with its replay.
_CONTENTION = "40"


class Row(dict[str, Any]):
    """A row, by column. `source` is the server it was read from, or "buffer" if pending writes
    made or changed it; `complete` is that of all the rows."""

    __slots__ = ("complete", "source")

    def __init__(self, values: Mapping[str, Any], source: str, complete: bool) -> None:
        super().__init__(values)
        self.source = source
        self.complete = complete


class RowList(list[Row]):
    """Rows, and the server they were read from. `complete` is False while a write is pending that
    could touch the table and whose effect only PostgreSQL can tell."""

    __slots__ = ("complete", "source")

    def __init__(self, rows: Iterable[Row], source: str, complete: bool) -> None:
        super().__init__(rows)
        self.source = source
        self.complete = complete


class NotShown(Exception):
    """Neither this server nor the overlay has the write that the read must include."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a read asks for; `after` is the id of a write that it must include."""

    table: str
    where: dict[str, Any]
    after: str | None


class MergedRead:
    """One read on one session.

    `choosing` is whether another server can be chosen if this one may be out of date.
    """

    def __init__(
        self, keys: Overlay, cache: RecordCache, redis: RedisConnection, session: ReadSession,
        query: Query, choosing: bool,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._cache = cache
        self._redis = redis
        self._session = session
        self._query = query
        self._choosing = choosing
        self._watching = True

    def run(self) -> RowList:
        """Return the rows; ask again if the tables changed since they were looked up."""
        session, refreshed = self._session, self._session.is_stale()
        if refreshed:
            session.refresh()
        for last in (False, False, True):
            self._watching = not last
            try:
                return self._ask(refreshed or last)
            except UnknownName as unknown:
                session.refresh(str(unknown))
                refreshed = True
            except Changed:
                session.refresh()
            except DatabaseError as error:
                if last or not error.sqlstate.startswith((*_REFRESH, _CONTENTION)):
                    raise self._refused(error) from None
                session.refresh()
            except Unfit as error:
                if last or session.is_current():
                    raise InvalidRead(f"where: {error}") from None
                session.refresh()
        raise DatabaseUnavailable(f"table {self._query.table} changed during each attempt to read")

    def _refused(self, error: DatabaseError) -> Exception:
        if error.sqlstate in ("42P01", "3F000"):
            # The declared table exists, or the read would have been refused before.
            return SchemaMissing(f"{self._session.server} has no ledger: {error}")
        if error.sqlstate.startswith("22"):
            return InvalidRead(f"where: a value does not fit its column: {error}")
        return error

    def _ask(self, refreshed: bool) -> RowList:
        relation = self._session.relation(self._query.table)
        typed = self._typed(relation, refreshed)
        digest = None
        if relation.has_digests:
            digest = snapshot.digest_of(relation, self._query.where)
        writes = PendingWrites(self._redis, self._keys, self._cache, self._session.has_digests)
        pending = writes.gather(self._query.table, digest, self._query.after)
        self._check_usable(pending)
        ids = [each.id for each in pending.pending] + pending.statements
        if self._query.after:
            ids.append(self._query.after)
        if not ids:
            return self._plain(relation)
        try:
            return self._merged(relation, typed, pending, ids, refreshed)
        finally:
            self._session.typed.forget(pending.uncached)

    def _typed(self, relation: Relation, refreshed: bool) -> Mapping[str, Any]:
        """Return the values of the read's condition; fewer if some are undecided."""
        try:
            return self._session.typed.values(typed_where(relation, self._query.where))
        except Undecided:
            return {}
        except UnknownName:
            if not refreshed:
                raise
            unknown = sorted(self._query.where.keys() - relation.columns.keys())
            raise InvalidRead(
                f"where: table {relation.name} has no column {unknown[0]}"
            ) from None

    def _check_usable(self, pending: PendingSet) -> None:
        """Check that the server may be read from. Raises DatabaseUnavailable and ReplicaLost."""
        server = self._session.server
        if server == PRIMARY:
            database = self._session.database
            if is_superseded((database.system, database.timeline), pending.primary):
                database.close()
                raise DatabaseUnavailable("this primary was superseded in a failover")
            return
        if pending.primary and self._session.database.system != pending.primary[0]:
            raise ReplicaLost(
                f"replica {server} belongs to another cluster than the primary",
                hint=f"see replicas.servers.{server}",
            )
        state = pending.replicas[server].state if server in pending.replicas else ""
        if state == "lost" or (state == "away" and self._choosing):
            raise ReplicaLost(f"replica {server} is {state}")
        missed = pending.missed.get(server)
        if missed is not None and not self._has_replayed(missed):
            raise ReplicaLost(f"replica {server} was lost and has not caught up yet")

    def _has_replayed(self, missed: str) -> bool:
        """Whether the replica has what left the overlay while it was lost."""
        try:
            position = Position.parse(missed)
        except ValueError:
            return False  # Damaged; the overlay cleaner will replace it by a position.
        database = self._session.database
        replayed = replayed_lsn(database)
        return (
            replayed is not None and database.system == position.system
            and replayed >= position.lsn
        )  # fmt: skip

    def _plain(self, relation: Relation) -> RowList:
        where, server, run = self._query.where, self._session.server, self._run
        if where.keys() >= set(relation.keys) and None not in where.values():
            prepared = self._session.prepared(relation, where)
            # PostgreSQL refuses it if the columns have changed; nothing else matters here.
            rows = prepared.rows(run(prepared.plain(where)))
        else:
            rows = snapshot.rows(relation, run(snapshot.plain(relation, where), relation))
        return RowList([Row(each, server, True) for each in rows], server, True)

    def _merged(
        self, relation: Relation, typed: Mapping[str, Any], pending: PendingSet,
        ids: Sequence[str], refreshed: bool,
    ) -> RowList:  # fmt: skip
        session = self._session
        scope = pending.tables | pending.rows.keys()
        changes = session.typed.changes(
            pending.pending, session.resolve, scope, refreshed=refreshed
        )
        effective = [
            each for each, change in zip(pending.pending, changes, strict=True) if change.steps
        ]
        shown = self._snapshot(relation, typed, pending, effective, ids)
        required = self._query.after
        if required and not pending.has_required and required not in shown.applied:
            raise NotShown
        complete = not pending.unsure and shown.applied.issuperset(pending.statements)
        left = [change for change in changes if change.id not in shown.applied]
        complete = complete and not _overtaken(changes, shown.applied)
        tables = {
            name: TableRows(session.relation(name), rows) for name, rows in shown.rows.items()
        }
        complete = replay(tables, left, session.typed.add) and complete
        return self._result(tables[relation.name], typed, complete)

    def _snapshot(
        self, relation: Relation, typed: Mapping[str, Any], pending: PendingSet,
        effective: Sequence[Pending], ids: Sequence[str],
    ) -> Snapshot:  # fmt: skip
        """Read the needed rows, and which ids are in the ledger, at one moment."""
        where, run = self._query.where, self._run
        single = not pending.tables and pending.rows.keys() == {relation.name}
        if single and len(pending.rows[relation.name]) == 1 and _decidable(relation, where, typed):
            key = {column: where[column] for column in relation.keys}
            prepared = self._session.prepared(relation, key)
            return prepared.read(run(prepared.merged(key, ids), relation))
        wanted = [(relation, self._conditions(relation, pending, effective))]
        for name in sorted((pending.tables | pending.rows.keys()) - {relation.name}):
            other = self._session.relation(name)
            wanted.append((other, self._conditions(other, pending, effective)))
        answer = run(snapshot.whole(wanted, where, ids), *[each for each, _ in wanted])
        return snapshot.read([each for each, _ in wanted], answer)

    def _run(self, sql: str, *relations: Relation) -> list[tuple[Any, ...]]:
        """Read from these tables, if they are as they were looked up (rule 17)."""
        # The last time without: a table of which nothing but the statistics changes is read too.
        watches = self._session.watches(relations) if self._watching else ""
        try:
            return self._session.database.run(watches + sql)
        except (ValueError, OverflowError):
            raise InvalidRead(
                f"a row of {self._query.table} holds a date outside the range of Python",
                hint="Python has the years 1 to 9999; read the row as text, in your own session",
            ) from None

    def _conditions(
        self, relation: Relation, pending: PendingSet, effective: Sequence[Pending]
    ) -> list[Mapping[str, Any]] | None:
        """Return conditions for the rows that the read or a pending write may touch; None: all."""
        own = relation.name == self._query.table
        if own and not self._query.where:
            return None
        digests = pending.rows.get(relation.name)
        found: list[Mapping[str, Any]] = [self._query.where] if own else []
        for each in effective:
            for operation in each.operations:
                if relation in self._session.resolve(operation.table):  # type: ignore[union-attr]
                    found += snapshot.conditions(relation, operation, digests)
        return found

    def _result(self, rows: TableRows, typed: Mapping[str, Any], complete: bool) -> RowList:
        """Return the rows that the read is about, after all pending writes."""
        server = self._session.server
        meets: Callable[[MergedRow], bool | None]
        if self._query.where and not _decidable(rows.relation, self._query.where, typed):
            # Only the server can compare, and it did so with the columns as they were.
            columns = self._query.where.keys()
            meets = lambda row: None if row.written & columns else row.matched  # noqa: E731
        else:
            found = {id(row) for row in rows.find(typed)} if typed else None
            meets = lambda row: found is None or id(row) in found  # noqa: E731
        judged = [(row, meets(row)) for row in rows.rows]
        complete = complete and all(answer is not None for _, answer in judged)
        return RowList(
            [
                Row(_as_read(row.values), "buffer" if row.written else server, complete)
                for row, answer in judged if answer
            ],
            server, complete,
        )  # fmt: skip


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    if JSON_NULL not in values.values():
        return values
    return {name: None if value is JSON_NULL else value for name, value in values.items()}


def _overtaken(changes: Sequence[Change], applied: Collection[str]) -> bool:
    """Whether a change is left that came before an applied one.

    Its first attempt failed, so its effect on the next attempt is unknown.
    """
    left = False
    for change in changes:
        if left and change.id in applied:
            return True
        left = left or (bool(change.steps) and change.id not in applied)
    return False


def _decidable(relation: Relation, where: Mapping[str, Any], typed: Mapping[str, Any]) -> bool:
    """Whether Python can tell which rows meet the read's condition."""
    return len(typed) == len(where) and all(
        not relation.holds_json(name) if value is None else relation.comparable(name)
        for name, value in where.items()
    )
