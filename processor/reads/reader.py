"""`processor.read`: rows as they will be, merged from a server and what is still on its way to it.

Which server is asked is chosen here, what it is asked in `reading`. It does not matter how far a
server is, nor whether the primary is up.

What is not shown: defaults that are no constants, generated columns, triggers, rules, foreign keys
that cascade, and writes by the name of another relation (a view, a partition). A write that some
other constraint will refuse is seen until it is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from processor.buffer import overlay
from processor.buffer.overlay import Overlay
from processor.config.settings import PRIMARY, Settings
from processor.connections.redis_client import RedisPool
from processor.connections.shared import Shared
from processor.errors import (
    DatabaseUnavailable,
    InvalidRead,
    RedisRefused,
    RedisUnavailable,
    ReplicaLost,
)
from processor.reads.merged_read import MergedRead, NotShown, Question, RowList
from processor.reads.pending import Decoded
from processor.reads.sessions import ReadPool, ReadSession
from processor.receipts import receipt as receipts
from processor.receipts import routing
from processor.receipts.receipt import Receipt
from processor.transaction.values import plain_mapping


class Reader:
    """Reads by one set of settings; used by all threads of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._overlay = Overlay(settings)
        self._decoded = Decoded(self._overlay)
        self._redis = RedisPool(settings.redis.url, settings.redis.timeout)
        self._pool = ReadPool(settings, self._overlay.declared)

    def read(
        self, table: str, where: Mapping[str, Any] | None, after: Receipt | None,
        server: str | None,
    ) -> RowList:  # fmt: skip
        """The rows. Raises as `processor.read` says."""
        asked = Question(
            self._declared(table), _carried(plain_mapping("where", where)) if where else {},
            after.id if after else None,
        )  # fmt: skip
        if server is not None:
            self._see_server(server)
            try:
                return self._read_on(server, asked)
            except NotShown:
                raise self._behind(after) from None
        return self._anywhere(asked, after)

    def _anywhere(self, asked: Question, after: Receipt | None) -> RowList:
        """From the nearest server that can answer; the primary is the last of them."""
        servers = [*self.settings.replicas.servers, PRIMARY]
        near = [server for server in servers if not self._pool.away(server)]
        failure: Exception | None = None
        for server in near or servers:
            try:
                return self._read_on(server, asked, choosing=True)
            except (DatabaseUnavailable, NotShown) as error:
                failure = error if not isinstance(failure, NotShown) else failure
        if isinstance(failure, NotShown):
            raise self._behind(after)
        assert failure is not None
        raise failure

    def _behind(self, after: Receipt | None) -> Exception:
        """Why the write cannot be shown, in how many seconds it might be."""
        assert after is not None
        try:
            routing.server_for(after)
        except Exception as error:
            return error
        return DatabaseUnavailable("the server that was asked does not show the write yet")

    def _declared(self, table: str) -> str:
        names = self._overlay.declared.names(table) if isinstance(table, str) else ()
        if not names:
            raise InvalidRead(
                f"table {table!r} is not in overlay.tables",
                hint=f"declare it with its key columns: overlay: {{tables: {{{table}: id}}}}",
            )
        return names[0]

    def _see_server(self, server: str) -> None:
        known = [*self.settings.replicas.servers, PRIMARY]
        # A mapping could not even be asked for what is no text.
        if not isinstance(server, str) or server not in known:
            raise InvalidRead(f"replica {server!r} is not in replicas.servers",
                              hint=f"one of {', '.join(known)}")  # fmt: skip

    def _read_on(self, server: str, asked: Question, *, choosing: bool = False) -> RowList:
        """Read on one server, twice if the session that was kept for it has ended."""
        session = self._pool.take(server)
        kept = session.database.last_call
        try:
            return self._on_session(session, asked, choosing)
        except ReplicaLost:
            raise
        except DatabaseUnavailable:
            if session.database.alive or not kept:
                raise
            self._pool.forget(server)
        finally:
            self._pool.give(session)
        session = self._pool.fresh(server)
        try:
            return self._on_session(session, asked, choosing)
        finally:
            self._pool.give(session)

    def _on_session(self, session: ReadSession, asked: Question, choosing: bool) -> RowList:
        redis = self._redis.take()
        try:
            return MergedRead(
                self._overlay, self._decoded, redis, session, asked, choosing
            ).run()
        except RedisRefused as refused:
            raise RedisUnavailable(f"pending writes cannot be read: {refused}") from None
        finally:
            self._redis.give(redis)

    def cached(self, name: str) -> Any:
        """The newest value that a pending transaction brought for a name."""
        redis = self._redis.take()
        try:
            found = redis.call("LRANGE", self._overlay.cache(name), -1, -1)
        except RedisRefused as refused:
            raise RedisUnavailable(f"pending writes cannot be read: {refused}") from None
        finally:
            self._redis.give(redis)
        return overlay.value(found[0]) if found else None

    def close(self) -> None:
        """Close what nobody uses at the moment."""
        self._redis.close()
        self._pool.close()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""
        self._redis.drop()
        self._pool.drop()


def _carried(value: Any) -> Any:
    """A value as a transaction would carry it: a number with a fraction is a decimal there."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {name: _carried(each) for name, each in value.items()}
    return [_carried(each) for each in value] if isinstance(value, list) else value


_reader = Shared(Reader)
close = _reader.close


def read(
    table: str,
    where: Mapping[str, Any] | None = None,
    *,
    after: Receipt | str | None = None,
    replica: str | None = None,
) -> RowList:
    """The rows of a table of `overlay.tables` whose columns equal `where`, pending writes included.

    None in `where` is NULL. Without `replica` the nearest of `replicas.servers` that can answer is
    asked, else the primary; with it that one, or "primary". `after` is the receipt (or the text of
    one) of a write that has to be in. The rows are dicts, and they and the list have `.source` and
    `.complete`.

    Raises InvalidRead, InvalidTransaction (a `where` or receipt that is none), RedisUnavailable,
    DatabaseUnavailable, ReplicaLost, and ReplicaBehind if no server shows the write of `after`.
    """
    receipt = None if after is None else receipts.of(after)
    return _reader.current().read(table, where, receipt, replica)


def cached(name: str) -> Any:
    """The value that the newest pending transaction gave for `name` by its `cache`; None if none
    did. It is there until all servers that are read from have the transaction."""
    return _reader.current().cached(name)
