"""Sessions that only read, on the primary and on the replicas, shared by the threads of a process.

Each remembers of its server what the declared tables are, and what was prepared there. Servers that
could not be reached are passed over for a moment, so that not every reader waits for them anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
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
from processor.telemetry.progress import Progress
from processor.transaction.write_set import Declared

_MOST_IDLE = 16
#: Tables are looked up anew after this, seconds: a default may have been given since.
_KNOWN_FOR = 30.0
#: A server that could not be reached is not tried again for this long, seconds.
_AWAY = 1.0
_SHAPES = 500


class ReadSession:
    """One session and what is known on it; used by one thread at a time."""

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
        self.casting = TypedChanges(self.database)
        self._relations: dict[str, Any] = {}
        self._oids: dict[str, int] = {}
        self._means: dict[str, list[Relation]] = {}
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._strange: set[str] = set()
        self._looked = float("-inf")

    def connect(self) -> None:
        """Open the session. Raises DatabaseUnavailable."""
        self.database.connect()
        if self.server == PRIMARY and not self.database.timeline:
            self._find_primary()
        # Only what finds one row by its key is prepared: planned anew each time it takes twice as
        # long, for the same plan.
        self.database.run("SET plan_cache_mode = force_generic_plan")
        self._forget()

    def _find_primary(self) -> None:
        """The first of several hosts is a standby: have the one that can be written to."""
        self.database.close()
        self.database = PostgresSession(
            self._settings.database, Progress(), application="processor reads", writes=True
        )
        self.database.connect()
        self.database.run(
            session_settings.reading(self._settings.database) + "; SET idle_session_timeout = 0;"
            " SET idle_in_transaction_session_timeout = 0"
        )

    def renew(self, strange: str = "") -> None:
        """Look tables up anew and prepare anew.

        `strange` is a name that was not known: for one that was strange a moment ago it is not
        done again, or each read that meets a mistaken transaction would.
        """
        if strange and strange in self._strange and not self.stale(_AWAY):
            return
        if not self.database.idle:
            self.database.run("ROLLBACK")
        self.database.run("DEALLOCATE ALL")
        self._forget()
        if strange:
            self._strange.add(strange)

    def stale(self, seconds: float = _KNOWN_FOR) -> bool:
        """Whether the tables were looked up longer ago than this."""
        return time.monotonic() - self._looked > seconds

    def relation(self, table: str) -> Relation:
        """A declared table. Raises InvalidRead."""
        if self._looked == float("-inf"):
            self._relations = dict(relations.load(self.database, self._declared.keys))
            self._looked = time.monotonic()
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

    def marked(self, table: str) -> bool:
        """Whether the rows of a declared table may be found by their marks."""
        found = self._relations.get(table)
        return isinstance(found, Relation) and found.marked

    def means(self, table: str) -> Sequence[Relation]:
        """The relations that an operation means by the name of its table."""
        known = self._means.get(table)
        if known is None:
            known = self._means[table] = self._meant(table)
        return known

    def _meant(self, table: str) -> list[Relation]:
        allowed = self._settings.database.tables
        if allowed and table not in allowed:
            raise Fails  # The processor will refuse it.
        found = [self._relations.get(name) for name in self._declared.names(table)]
        if table not in self._oids:
            self._oids.update(relations.same(self.database, [table]))
        return [
            each for each in found
            if isinstance(each, Relation) and each.oid == self._oids[table]
        ]  # fmt: skip

    def prepared(self, found: Relation, where: Mapping[str, Any]) -> Prepared:
        """A read by these columns, prepared on this session."""
        key = (found.name, *((name, value is None) for name, value in where.items()))
        known = self._prepared.get(key)
        if known is None:
            if len(self._prepared) >= _SHAPES:
                self.database.run("DEALLOCATE ALL")
                self._prepared.clear()
            known = Prepared(len(self._prepared), found, where)
            self.database.run(known.prepare)
            self._prepared[key] = known
        return known


class ReadPool:
    """The sessions of a process by server."""

    def __init__(self, settings: Settings, declared: Declared) -> None:
        self._settings = settings
        self._declared = declared
        self._idle: dict[str, deque[ReadSession]] = {}
        self._away: dict[str, tuple[float, str]] = {}

    def away(self, server: str) -> bool:
        """Whether it could not be reached a moment ago."""
        return time.monotonic() < self._away.get(server, (0.0, ""))[0]

    def take(self, server: str) -> ReadSession:
        """A session for the caller alone; `give` it back. Raises DatabaseUnavailable."""
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
        """A session that was just opened. Raises DatabaseUnavailable."""
        until, why = self._away.get(server, (0.0, ""))
        if time.monotonic() < until:
            raise DatabaseUnavailable(why)
        session = ReadSession(self._settings, server, self._declared)
        try:
            session.connect()
        except (DatabaseUnavailable, DatabaseError) as error:
            session.database.close()
            text = f"{server}: {error}"
            self._away[server] = time.monotonic() + _AWAY, text
            raise DatabaseUnavailable(text) from None
        self._away.pop(server, None)
        return session

    def give(self, session: ReadSession) -> None:
        """Return a session that was taken."""
        idle = self._idle.setdefault(session.server, deque())
        if session.database.idle and len(idle) < _MOST_IDLE:
            idle.append(session)
        else:
            session.database.close()

    def forget(self, server: str) -> None:
        """The server failed: its idle sessions are gone as well."""
        for session in self._emptied(server):
            session.database.close()

    def close(self) -> None:
        """Close the sessions that nobody uses."""
        for server in list(self._idle):
            self.forget(server)

    def drop(self) -> None:
        """Forget all sessions without closing them, in a forked child."""
        for server in list(self._idle):
            for session in self._emptied(server):
                session.database.drop()

    def _emptied(self, server: str) -> list[ReadSession]:
        found, idle = [], self._idle.get(server, deque())
        while idle:
            found.append(idle.pop())
        return found
