"""Read-only sessions on the primary and the replicas, shared by the threads of a process.

Each remembers the declared tables as they are on its server, and the statements prepared there. A
server that could not be reached is not tried again for a moment, so that not every reader waits for
its connect to fail.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from processor.config.settings import PRIMARY, Settings
from processor.connections import session_settings
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError, DatabaseUnavailable, InvalidRead
from processor.reads import relations
from processor.reads.merge import Fails
from processor.reads.relations import Relation
from processor.reads.snapshot import Prepared
from processor.reads.typed_changes import TypedChanges
from processor.sql.catalog import Refused
from processor.sql.table_versions import Watch, watched
from processor.telemetry.progress import Progress
from processor.transaction import table_names
from processor.transaction.write_set import Declared

_MOST_IDLE = 16
#: Tables are looked up again after so many seconds: a default may have been set since.
_TABLES_LIFETIME = 30.0
#: A server that could not be reached is not tried again for so many seconds.
_UNREACHABLE = 1.0
_MOST_PREPARED = 500
#: An unknown name is not looked up again for so many seconds.
_SAME_NAME = 1.0


class ReadSession:
    """One session and what it remembers; used by one thread at a time."""

    def __init__(self, settings: Settings, server: str, declared: Declared) -> None:
        self.server = server
        self._settings = settings
        self._declared = declared
        section = settings.database
        if server != PRIMARY:
            section = replace(section, dsn=settings.replicas.servers[server])
        self.database = PostgresSession(
            section, Progress(), application="processor reads", writes=False
        )
        self._forget()

    def _forget(self) -> None:
        self.typed = TypedChanges(self.database)
        self._relations: dict[str, Any] = {}
        self._oids: dict[str, int] = {}
        self._resolved: dict[str, list[Relation]] = {}
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._watches: dict[str, Watch] = {}
        self._unknown: set[str] = set()
        self._looked_up = float("-inf")

    def connect(self) -> None:
        """Open the session. Raises DatabaseUnavailable."""
        self.database.connect()
        if self.server == PRIMARY and not self.database.timeline:
            self._find_primary()
        # Only reads of one row by its key are prepared. Planned each time they take twice as long,
        # for the same plan.
        self.database.run("SET plan_cache_mode = force_generic_plan")
        self._forget()

    def _find_primary(self) -> None:
        """Connect to the primary instead: the first of several hosts is a standby."""
        self.database.close()
        self.database = PostgresSession(
            self._settings.database, Progress(), application="processor reads", writes=True
        )
        self.database.connect()
        self.database.run(
            session_settings.reading(self._settings.database) + "; SET idle_session_timeout = 0;"
            " SET idle_in_transaction_session_timeout = 0"
        )

    def refresh(self, unknown: str = "") -> None:
        """Forget the tables and prepared statements, so that they are looked up again.

        `unknown` is the unknown name that is the reason. It is not looked up twice within a
        moment, or every read that meets a mistaken transaction would do so.
        """
        if unknown and unknown in self._unknown and not self.is_stale(_SAME_NAME):
            return
        if not self.database.idle:
            self.database.run("ROLLBACK")
        self.database.run("DEALLOCATE ALL")
        self._forget()
        if unknown:
            self._unknown.add(unknown)

    def is_stale(self, seconds: float = _TABLES_LIFETIME) -> bool:
        """Whether the tables were looked up longer ago than so many seconds."""
        return time.monotonic() - self._looked_up > seconds

    def relation(self, table: str) -> Relation:
        """Return a declared table. Raises InvalidRead, DatabaseError and DatabaseUnavailable."""
        if self._looked_up == float("-inf"):
            # First, so that a table that changes meanwhile is looked up again.
            self._watch()
            self._relations = dict(relations.load(self.database, self._declared.keys))
            self._looked_up = time.monotonic()
        found = self._relations[table]
        if isinstance(found, Relation):
            if frozenset(found.keys) not in found.unique:
                raise InvalidRead(
                    f"overlay.tables: {', '.join(found.keys)} is not the key of {table} on"
                    f" {self.server}", hint="name the columns of a unique index",
                )  # fmt: skip
            return found
        code = found.sqlstate if isinstance(found, Refused) else "42P01"
        raise InvalidRead(f"table {table} cannot be read on {self.server}: SQLSTATE {code}")

    def _watch(self) -> None:
        """Prepare a watch for each declared table that exists."""
        for number, name in enumerate(self._declared.keys):
            watch = Watch(f"processor_t{number}", name)
            with contextlib.suppress(DatabaseError):
                self.database.run(f"BEGIN;{watched([watch])}COMMIT")
                self._watches[name] = watch
            if not self.database.idle:
                self.database.run("ROLLBACK")

    def is_current(self) -> bool:
        """Whether the tables are as they were looked up. Raises DatabaseUnavailable."""
        try:
            self.database.run("".join(each.execute for each in self._watches.values()) or "SELECT")
        except DatabaseError:
            return False
        return True

    def watches(self, tables: Iterable[Relation]) -> str:
        """Return SQL that fails if one of these tables may have changed since it was looked up."""
        return "".join([
            self._watches[each.name].execute for each in tables if each.name in self._watches
        ])  # fmt: skip

    def has_digests(self, table: str) -> bool:
        """Whether the rows of a declared table can be found by their digests."""
        found = self._relations.get(table)
        return isinstance(found, Relation) and found.has_digests

    def resolve(self, table: str) -> Sequence[Relation]:
        """Return the relations to which an operation refers by the name of its table."""
        resolved = self._resolved.get(table)
        if resolved is None:
            resolved = self._resolved[table] = self._resolve(table)
        return resolved

    def _resolve(self, table: str) -> list[Relation]:
        allowed = frozenset(map(table_names.canonical, self._settings.database.tables))
        if allowed and table not in allowed:
            raise Fails  # The processor will refuse the transaction.
        found = [self._relations.get(name) for name in self._declared.names(table)]
        if table not in self._oids:
            self._oids.update(relations.oids(self.database, [table]))
        return [
            each for each in found
            if isinstance(each, Relation) and each.oid == self._oids[table]
        ]  # fmt: skip

    def prepared(self, relation: Relation, where: Mapping[str, Any]) -> Prepared:
        """Return a read by these columns, prepared on this session."""
        key = (relation.name, *((name, value is None) for name, value in where.items()))
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _MOST_PREPARED:
                self.database.run("".join(each.deallocate for each in self._prepared.values()))
                self._prepared.clear()
            prepared = Prepared(len(self._prepared), relation, where)
            self.database.run(self.watches([relation]) + prepared.prepare)
            self._prepared[key] = prepared
        return prepared


class ReadPool:
    """The sessions of a process, by server."""

    def __init__(self, settings: Settings, declared: Declared) -> None:
        self._settings = settings
        self._declared = declared
        self._idle: dict[str, deque[ReadSession]] = {}
        #: Until when (monotonic) a server is not tried again, and the error.
        self._unreachable: dict[str, tuple[float, str]] = {}

    def is_unreachable(self, server: str) -> bool:
        """Whether a server could not be reached a moment ago."""
        return time.monotonic() < self._unreachable.get(server, (0.0, ""))[0]

    def take(self, server: str) -> ReadSession:
        """Return a session for the caller alone, to be given back. Raises DatabaseUnavailable."""
        idle = self._idle.get(server)
        while idle:
            try:
                session = idle.pop()
            except IndexError:
                break
            if session.database.alive:
                return session
        return self.fresh(server)

    def fresh(self, server: str) -> ReadSession:
        """Return a newly opened session. Raises DatabaseUnavailable."""
        until, why = self._unreachable.get(server, (0.0, ""))
        if time.monotonic() < until:
            raise DatabaseUnavailable(why)
        session = ReadSession(self._settings, server, self._declared)
        try:
            session.connect()
        except (DatabaseUnavailable, DatabaseError) as error:
            session.database.close()
            text = f"{server}: {error}"
            self._unreachable[server] = time.monotonic() + _UNREACHABLE, text
            raise DatabaseUnavailable(text) from None
        self._unreachable.pop(server, None)
        return session

    def give(self, session: ReadSession) -> None:
        """Give back a session that was taken."""
        idle = self._idle.setdefault(session.server, deque())
        if session.database.idle and len(idle) < _MOST_IDLE:
            idle.append(session)
        else:
            session.database.close()

    def forget(self, server: str) -> None:
        """Close the idle sessions of a server that failed: they are gone as well."""
        for session in self._take_idle(server):
            session.database.close()

    def close(self) -> None:
        """Close the sessions that are not in use."""
        for server in list(self._idle):
            self.forget(server)

    def drop(self) -> None:
        """Forget all sessions without closing them, in a forked child."""
        for server in list(self._idle):
            for session in self._take_idle(server):
                session.database.drop()

    def _take_idle(self, server: str) -> list[ReadSession]:
        found, idle = [], self._idle.get(server, deque())
        while idle:
            found.append(idle.pop())
        return found
