"""Where a follower asks how far replicas are: at each replica, or at the primary for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.wal_position import Position, parse_lsn
from processor.errors import DatabaseError
from processor.replicas import queries
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry.progress import Progress


class Answer(NamedTuple):
    """How far one replica is.

    `position` is up to where it provably has this processor's commits, `lsn` what it has replayed,
    `server` identifies the running server behind its name.
    """

    position: Position | None
    lsn: str | None
    server: str


class Probe(ABC):
    """A server that a follower asks, and the session for it."""

    #: Whether the server must be the primary.
    primary = False

    def __init__(self, dsn: str, settings: Settings, marks: CommitMarks, instance: str) -> None:
        self._marks = marks
        self._deadline = settings.database.connect_timeout
        self.database = PostgresSession(
            replace(settings.database, dsn=dsn), Progress(),
            application=f"processor-replicas {instance}", writes=False, primary=self.primary,
        )  # fmt: skip

    @abstractmethod
    def names(self) -> list[str]:
        """Return the replicas that this probe reports on."""

    @abstractmethod
    def ask(self, tokens: Iterable[str]) -> dict[str, Answer]:
        """Return the answer of each replica that is there.

        `tokens` are the owner tokens of the lanes of this processor. Raises DatabaseError and
        DatabaseUnavailable.
        """

    def wait(self, seconds: float) -> bool:
        """Wait at the server until it is time to ask again; False if the server cannot do that."""
        return False

    def run(self, sql: str) -> list[tuple[object, ...]]:
        """Run a query, over a new session if there is none. Raises as `ask`."""
        if not self.database.alive:
            self.database.connect()
        return self.database.run(sql, deadline=self._deadline)


class ReplicaProbe(Probe):
    """One replica, asked directly: which rows of the processor's lanes it shows."""

    def __init__(
        self, name: str, dsn: str, settings: Settings, marks: CommitMarks, instance: str
    ) -> None:
        super().__init__(dsn, settings, marks, instance)
        self._name = name
        self._can_wait = True

    def names(self) -> list[str]:
        return [self._name]

    def ask(self, tokens: Iterable[str]) -> dict[str, Answer]:
        lsn, server, shown = self.run(queries.replayed(tokens))[0]
        rows = queries.lane_rows(shown)  # type: ignore[arg-type]
        position = self._marks.replayed_position(rows)
        return {self._name: Answer(position, lsn, str(server))}  # type: ignore[arg-type]

    def wait(self, seconds: float) -> bool:
        newest, version = self._marks.newest(), self.database.server_version
        if newest is None or not self._can_wait or version < queries.WAIT_VERSION:
            return False
        try:
            return self.run(queries.wait_for_lsn(newest, seconds))[0][0] in ("success", "timeout")
        except DatabaseError:
            # Not supported or not allowed: ask at the interval, as with older versions.
            self._can_wait = False
            return False


class PrimaryProbe(Probe):
    """The primary, asked for the replicas that stream from it; without pg_monitor it shows none."""

    primary = True

    def __init__(self, settings: Settings, marks: CommitMarks, instance: str) -> None:
        super().__init__(settings.database.dsn, settings, marks, instance)
        self._seen = set(settings.replicas.promotable)

    def names(self) -> list[str]:
        return sorted(self._seen)

    def ask(self, tokens: Iterable[str]) -> dict[str, Answer]:
        database, newest = self.database, self.database.newest
        if database.alive and newest not in (None, (database.system, database.timeline)):
            # After a failover the old primary may stay up, with replicas that still stream from it.
            database.close()
        found = {
            str(name): Answer(self._position(int(str(timeline), 16), lsn), lsn, str(server))
            for name, lsn, server, timeline in self.run(queries.STREAMING_REPLICAS)
            if name and isinstance(lsn, str)
        }
        self._seen |= found.keys()
        return found

    def _position(self, timeline: int, lsn: str) -> Position:
        return Position(self.database.system, timeline, parse_lsn(lsn))
