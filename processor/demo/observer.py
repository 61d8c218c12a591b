"""Counts everything: from the producers' files, Redis, PostgreSQL, and the processor's /health.

Each source is read directly, so the screen does not show what the processor believes.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
from pathlib import Path
from typing import Any

from processor.buffer import lane_size, registry
from processor.buffer.lane import Lane
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.demo.observatory import TELESCOPES
from processor.demo.producers import LINE, acknowledged
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.telemetry.progress import Progress

# The session owns no lanes: it need not end early for a take-over.
_IDLE = 3600.0
_APPLIED = "SELECT coalesce(sum(applied), 0)::bigint FROM processor.lane"


class Observer:
    """Uses its own connections to both servers; a count that cannot be read now keeps its value."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """`settings` must name exactly one replica."""
        self._settings = settings
        self._directory = directory
        primary = dataclasses.replace(settings.database, takeover=_IDLE)
        self._database = PostgresSession(primary, Progress(), application="processor demo")
        self._redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        (dsn,) = settings.replicas.servers.values()
        replica = dataclasses.replace(settings.database, dsn=dsn)
        self._replica = PostgresSession(replica, Progress(), application="processor demo",
            writes=False)
        self._committed = self._replayed = 0

    def database(self) -> PostgresSession:
        """The session with the primary, connected if it is not yet."""
        if not self._database.alive:
            self._database.connect()
        return self._database

    def accepted(self) -> int:
        """Transactions that the producers hold receipts for."""
        paths = [acknowledged(self._directory, name) for name in TELESCOPES]
        return sum(path.stat().st_size for path in paths if path.exists()) // LINE

    def buffered(self) -> int:
        """Entries in all lanes."""
        names = registry.registered(self._redis, self._settings.namespace)
        lanes = [Lane(self._settings.namespace, name) for name in names]
        replies = self._redis.calls(lane_size.measure(self._settings.namespace, lanes))
        _, sizes = lane_size.measured(lanes, replies)
        return sum(size.depth + size.scheduled + size.parked for size in sizes)

    def committed(self) -> tuple[int, bool]:
        """Transactions whose effect is in PostgreSQL; False if it did not answer."""
        try:
            self._committed = int(self.database().run(_APPLIED)[0][0])
        except (DatabaseUnavailable, DatabaseError):
            return self._committed, False
        return self._committed, True

    def replayed(self) -> int:
        """Transactions whose effect the replica has replayed."""
        try:
            if not self._replica.alive:
                self._replica.connect()
            self._replayed = int(self._replica.run(_APPLIED)[0][0])
        except (DatabaseUnavailable, DatabaseError):
            self._replica.close()
        return self._replayed

    def health(self) -> str:
        """The status word of the processor's /health; empty if it does not answer."""
        host, _, port = self._settings.health.bind.rpartition(":")
        # Not urllib, which would use a proxy from the environment.
        connection = http.client.HTTPConnection(host, int(port), timeout=0.5)
        try:
            connection.request("GET", "/health")
            answer: dict[str, Any] = json.load(connection.getresponse())
            return str(answer["background_processor"]["status"])
        except (OSError, http.client.HTTPException, ValueError):
            return ""
        finally:
            connection.close()

    def close(self) -> None:
        self._database.close()
        self._replica.close()
        self._redis.close()
