"""`processor.read`: rows as they will be, merged from a server and the writes pending for it.

This module chooses the server; `merged_read` asks it. The result does not depend on how far behind
the server is, nor on whether the primary is up.

Not merged: defaults that are not constant, generated columns, triggers, rules, cascading foreign
keys, and writes through another relation (a view, a partition). A write that another constraint
will refuse is shown until it is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from processor.buffer import overlay
from processor.buffer.accepted import AcceptedEntries
from processor.buffer.overlay import Overlay
from processor.config.settings import PRIMARY, Settings
from processor.connections.redis_client import RedisConnection
from processor.connections.redis_pool import RedisPool
from processor.connections.shared import Shared
from processor.errors import (
    DatabaseUnavailable,
    InvalidRead,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    ReplicaLost,
)
from processor.ledger import outcomes
from processor.reads.merged_read import MergedRead, NotShown, Query, RowList
from processor.reads.pending import RecordCache
from processor.reads.sessions import ReadPool, ReadSession
from processor.receipts import receipt as receipts
from processor.receipts import routing
from processor.receipts.receipt import Receipt
from processor.transaction.table_names import TableName
from processor.transaction.values import identifier, plain_mapping

T = TypeVar("T")


class Reader:
    """Reads by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._overlay = Overlay(settings)
        self._cache = RecordCache(
            self._overlay, AcceptedEntries(settings, self._overlay), self._in_ledger
        )
        self._redis = RedisPool(settings.redis.url, settings.redis.timeout)
        self._pool = ReadPool(settings, self._overlay.declared)

    def read(
        self, table: TableName, where: Mapping[str, Any] | None, after: Receipt | None,
        server: str | None,
    ) -> RowList:  # fmt: skip
        """Return the rows, as `processor.read`."""
        query = Query(
            self._declared(table), _as_carried(plain_mapping("where", where)) if where else {},
            after.id if after else None,
        )  # fmt: skip
        if server is not None:
            self._check_server(server)
            try:
                return self._read_on(server, query)
            except NotShown:
                raise self._behind(after) from None
        return self._anywhere(query, after)

    def _anywhere(self, query: Query, after: Receipt | None) -> RowList:
        """Read from the nearest server that can answer; the primary comes last."""
        servers = [*self.settings.replicas.servers, PRIMARY]
        reachable = [server for server in servers if not self._pool.is_unreachable(server)]
        failure: Exception | None = None
        for server in reachable or servers:
            try:
                return self._read_on(server, query, choosing=True)
            except (DatabaseUnavailable, NotShown) as error:
                failure = error if not isinstance(failure, NotShown) else failure
        if isinstance(failure, NotShown):
            raise self._behind(after)
        assert failure is not None
        raise failure

    def _behind(self, after: Receipt | None) -> Exception:
        """Return the error for a write that cannot be shown, with the seconds until it may be."""
        assert after is not None
        try:
            routing.server_for(after)
        except Exception as error:
            return error
        return DatabaseUnavailable("the server does not show the write yet")

    def _declared(self, table: TableName) -> str:
        try:
            names = self._overlay.declared.names(identifier("table", table))
        except InvalidTransaction:
            names = ()
        if not names:
            raise InvalidRead(
                f"table {table!r} is not in overlay.tables",
                hint=f"declare it with its key columns: overlay: {{tables: {{{table}: id}}}}",
            )
        return names[0]

    def _check_server(self, server: str) -> None:
        known = [*self.settings.replicas.servers, PRIMARY]
        # Only text may be looked up in a mapping: other values may not be hashable.
        if not isinstance(server, str) or server not in known:
            raise InvalidRead(f"replica {server!r} is not in replicas.servers",
                              hint=f"one of {', '.join(known)}")  # fmt: skip

    def _read_on(self, server: str, query: Query, *, choosing: bool = False) -> RowList:
        """Read on one server; once more if its idle session turns out to have ended."""
        session = self._pool.take(server)
        was_used = session.database.last_call
        try:
            return self._on_session(session, query, choosing)
        except ReplicaLost:
            raise
        except DatabaseUnavailable:
            if session.database.alive or not was_used:
                raise
            self._pool.forget(server)
        finally:
            self._pool.give(session)
        session = self._pool.fresh(server)
        try:
            return self._on_session(session, query, choosing)
        finally:
            self._pool.give(session)

    def _on_session(self, session: ReadSession, query: Query, choosing: bool) -> RowList:
        return self._ask(
            lambda redis: MergedRead(
                self._overlay, self._cache, redis, session, query, choosing
            ).run()
        )  # fmt: skip

    def _in_ledger(self, ids: Sequence[str]) -> Collection[str]:
        """Return which of these ids the ledger of the primary has as applied."""
        for again in (True, False):
            session = self._pool.take(PRIMARY)
            try:
                found = outcomes.find(session.database, ids)
                return [i for i, recorded in found.items() if recorded.outcome == "applied"]
            except DatabaseUnavailable:
                if not again:
                    raise
                # The server may have ended this idle session, and then all others as well.
                self._pool.forget(PRIMARY)
            finally:
                self._pool.give(session)
        raise AssertionError

    def cached(self, name: str) -> Any:
        """Return the newest value that a pending transaction gives for a name."""
        key = self._overlay.cache(name)
        found = self._ask(lambda redis: redis.call("LRANGE", key, -1, -1))
        return overlay.value(found[0]) if found else None

    def _ask(self, question: Callable[[RedisConnection], T]) -> T:
        try:
            return self._redis.ask(question)
        except RedisRefused as refused:
            raise RedisUnavailable(f"cannot read pending writes: {refused}") from None

    def close(self) -> None:
        """Close the connections that are not in use; the next read opens others."""
        self._redis.close()
        self._pool.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        self._redis.drop()
        self._pool.drop()


def _as_carried(value: Any) -> Any:
    """Return a value as a transaction carries it: a number with a fraction is a decimal there."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {name: _as_carried(each) for name, each in value.items()}
    return [_as_carried(each) for each in value] if isinstance(value, list) else value


_reader = Shared(Reader)
close = _reader.close


def read(
    table: TableName,
    where: Mapping[str, Any] | None = None,
    *,
    after: Receipt | str | None = None,
    replica: str | None = None,
) -> RowList:
    """Return the rows of a table whose columns equal `where`, with pending writes merged in.

    The table is one of `overlay.tables`. None in `where` is NULL. `replica` names the server to
    read from, one of `replicas.servers` or "primary"; by default the nearest that can answer, the
    primary last. `after` is the receipt, or the text of one, of a write that the rows must include.
    The rows are dicts; they and the list have `.source` and `.complete`.

    Raises InvalidRead, InvalidTransaction (a `where` or receipt that is not valid),
    RedisUnavailable, DatabaseUnavailable, ReplicaLost, and ReplicaBehind if no server shows the
    write of `after`.
    """
    receipt = None if after is None else receipts.of(after)
    return _reader.current().read(table, where, receipt, replica)


def cached(name: str) -> Any:
    """Return the value that the newest pending transaction gives for `name` in its `cache`.

    None if there is none. The value stays until all servers that are read from have the
    transaction. Raises RedisUnavailable.
    """
    return _reader.current().cached(name)
