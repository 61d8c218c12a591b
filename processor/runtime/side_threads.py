"""The threads beside the drain thread: doorbell, replication watch, overlay cleaner, observer.

Each is small, has its own connections and never blocks the drain thread. They start and stop with
it, and are replaced when the settings change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.replicas.watch import ReplicaWatch
from processor.runtime.doorbell import Doorbell
from processor.runtime.observer import Observer
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.telemetry.status import Server


class SideThreads:
    """The threads beside one drain thread, for one set of settings."""

    def __init__(
        self, settings: Settings, instance: str, event: threading.Event,
        ask_drain: Callable[[], Server | None],
    ) -> None:  # fmt: skip
        self._doorbell_redis = RedisConnection(settings.redis.url, settings.redis.timeout)
        self.doorbell = Doorbell(event, self._doorbell_redis)
        # With `settle: replicated` a replica that advances gives the drain entries to remove.
        on_advance = event.set if settings.settle == "replicated" else _nothing
        self.replica_watch = ReplicaWatch(settings, instance, on_advance)
        # Also if `overlay.tables` is empty: a table may have been in the overlay until now, and a
        # transaction may bring `cache` values.
        self._overlay_cleaner = OverlayCleaner(settings)
        self.observer = Observer(settings, ask_drain)

    def start(self) -> None:
        """Start all threads."""
        self.doorbell.start()
        self.replica_watch.start()
        self._overlay_cleaner.start()
        self.observer.start()

    def stop(self, timeout: float) -> None:
        """End all threads, within about `timeout` seconds."""
        end = time.monotonic() + timeout
        self.doorbell.stop(timeout)
        self.replica_watch.stop(max(0.1, end - time.monotonic()))
        self._overlay_cleaner.stop(max(0.1, end - time.monotonic()))
        self.observer.stop(max(0.1, end - time.monotonic()))

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child (P6)."""
        self._doorbell_redis.drop()
        self.replica_watch.drop()
        self._overlay_cleaner.drop()
        self.observer.drop()


def _nothing() -> None:
    """The drain waits for no replica."""
