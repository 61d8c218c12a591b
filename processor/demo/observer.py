"""Who looks at everything: the producers' files, Redis, PostgreSQL, the processor's /health.

Each is asked by itself, so what stands on the screen is not what the processor believes.
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

# The session ends with the demo; nobody waits for it to be given up.
_IDLE = 3600.0
_ASKED = "SELECT coalesce(sum(applied), 0)::bigint FROM processor.lane"


class Observer:
    """Connections of its own to both servers; what cannot be asked now stays as it was."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """`settings` name one replica."""
        self._settings = settings
        self._directory = directory
        wanted = dataclasses.replace(settings.database, takeover=_IDLE)
        self._database = PostgresSession(wanted, Progress(), application="processor demo")
        self._redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        (replica,) = settings.replicas.servers.values()
        asked = dataclasses.replace(settings.database, dsn=replica)
        self._replica = PostgresSession(asked, Progress(), application="processor demo",
            writes=False)
        self._committed = self._replayed = 0

    def database(self) -> PostgresSession:
        """The session, opened where there is none."""
        if not self._database.alive:
            self._database.connect()
        return self._database

    def accepted(self) -> int:
        """Transactions that a producer holds a receipt for."""
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
        """Transactions whose effect PostgreSQL has; False if it was away and did not say."""
        try:
            self._committed = int(self.database().run(_ASKED)[0][0])
        except (DatabaseUnavailable, DatabaseError):
            return self._committed, False
        return self._committed, True

    def replayed(self) -> int:
        """Transactions whose effect the replica shows."""
        try:
            if not self._replica.alive:
                self._replica.connect()
            self._replayed = int(self._replica.run(_ASKED)[0][0])
        except (DatabaseUnavailable, DatabaseError):
            self._replica.close()
        return self._replayed

    def health(self) -> str:
        """The status word of the processor's /health; empty while nobody answers there."""
        host, _, port = self._settings.health.bind.rpartition(":")
        # Not urllib, which would ask a proxy that the environment names.
        asking = http.client.HTTPConnection(host, int(port), timeout=0.5)
        try:
            asking.request("GET", "/health")
            answer: dict[str, Any] = json.load(asking.getresponse())
            return str(answer["background_processor"]["status"])
        except (OSError, http.client.HTTPException, ValueError):
            return ""
        finally:
            asking.close()

    def close(self) -> None:
        self._database.close()
        self._replica.close()
        self._redis.close()
