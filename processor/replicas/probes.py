"""Whom a follower asks how far replicas are: each of them, or the primary for those that stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.wal_position import Position, number
from processor.errors import DatabaseError
from processor.replicas import queries
from processor.replicas.commit_marks import CommitMarks
from processor.telemetry.progress import Progress


class Answer(NamedTuple):
    """What is heard of a replica: up to where it has our commits, what it has replayed, and which
    server that is."""

    position: Position | None
    lsn: str | None
    server: str


class Probe(ABC):
    """Whom a follower asks. `names` are the replicas that it speaks of."""

    #: Whether it is the primary that is asked.
    primary = False

    def __init__(self, dsn: str, settings: Settings, marks: CommitMarks, instance: str) -> None:
        self._marks = marks
        self._deadline = settings.database.connect_timeout
        self.database = PostgresSession(
            replace(settings.database, dsn=dsn), Progress(),
            application=f"processor-replicas {instance}", writes=False, primary=self.primary,
        )  # fmt: skip

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def heard(self, tokens: Iterable[str]) -> dict[str, Answer]:
        """For each replica that answered: up to where it has our commits, and what it replayed.

        `tokens` are those of our lanes. Raises DatabaseError and DatabaseUnavailable.
        """

    def rest(self, seconds: float) -> bool:
        """Wait where the server can tell when it is time to ask; False if it cannot."""
        return False

    def run(self, sql: str) -> list[tuple[object, ...]]:
        """Ask, over a new session if need be."""
        if not self.database.alive:
            self.database.connect()
        return self.database.run(sql, deadline=self._deadline)


class Server(Probe):
    """One replica that is asked itself: which rows of our lanes it shows."""

    def __init__(
        self, name: str, dsn: str, settings: Settings, marks: CommitMarks, instance: str
    ) -> None:
        super().__init__(dsn, settings, marks, instance)
        self._name = name
        self._waits = True

    def names(self) -> list[str]:
        return [self._name]

    def heard(self, tokens: Iterable[str]) -> dict[str, Answer]:
        lsn, server, shown = self.run(queries.replayed(tokens))[0]
        position = self._marks.shown(queries.lane_rows(shown))  # type: ignore[arg-type]
        return {self._name: Answer(position, lsn, str(server))}  # type: ignore[arg-type]

    def rest(self, seconds: float) -> bool:
        newest = self._marks.newest()
        if newest is None or not self._waits or self.database.server_version < queries.WAIT_VERSION:
            return False
        try:
            return self.run(queries.wait_for_lsn(newest, seconds))[0][0] in ("success", "timeout")
        except DatabaseError:
            # Not understood, or not allowed: it is asked at the interval as older ones are.
            self._waits = False
            return False


class Streaming(Probe):
    """The primary, asked for those that stream from it; a role without pg_monitor sees none."""

    primary = True

    def __init__(self, settings: Settings, marks: CommitMarks, instance: str) -> None:
        super().__init__(settings.database.dsn, settings, marks, instance)
        self._seen = set(settings.replicas.promotable)

    def names(self) -> list[str]:
        return sorted(self._seen)

    def heard(self, tokens: Iterable[str]) -> dict[str, Answer]:
        newest = self.database.newest
        if self.database.alive and newest not in (None, _server(self.database)):
            # After a failover the old primary may live on, with whoever still streams from it.
            self.database.close()
        found = {
            str(name): Answer(self._at(int(str(timeline), 16), lsn), lsn, str(server))
            for name, lsn, server, timeline in self.run(queries.STREAMING_REPLICAS)
            if name and isinstance(lsn, str)
        }
        self._seen |= found.keys()
        return found

    def _at(self, timeline: int, lsn: str) -> Position:
        return Position(self.database.system, timeline, number(lsn))


def _server(database: PostgresSession) -> tuple[str, int]:
    return database.system, database.timeline
