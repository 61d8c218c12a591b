"""What runs beside the drain thread: the doorbell, the replication watch, the overlay's clearing.

Each is a small thread with connections of its own; none of them ever blocks the drain. They start
and stop with it, and begin anew when the settings change.
"""

from __future__ import annotations

import threading
import time

from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.replicas.watch import ReplicaWatch
from processor.runtime.doorbell import Doorbell
from processor.runtime.overlay_cleaner import OverlayCleaner


class SideThreads:
    """The threads beside one drain thread, by one set of settings."""

    def __init__(self, settings: Settings, instance: str, event: threading.Event) -> None:
        self._bell = RedisConnection(settings.redis.url, settings.redis.timeout)
        self.doorbell = Doorbell(event, self._bell)
        # What is withheld waits for replicas, and with it the drain.
        further = event.set if settings.settle == "replicated" else _nothing
        self.following = ReplicaWatch(settings, instance, further)
        # Also where no table is in the overlay: one may have been until now, and a transaction may
        # bring values of its own.
        self._clearing = OverlayCleaner(settings)

    def start(self) -> None:
        """Start them all."""
        self.doorbell.start()
        self.following.start()
        self._clearing.start()

    def stop(self, timeout: float) -> None:
        """End them all, in about `timeout` seconds."""
        end = time.monotonic() + timeout
        self.doorbell.stop(timeout)
        self.following.stop(max(0.1, end - time.monotonic()))
        self._clearing.stop(max(0.1, end - time.monotonic()))

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child (P6)."""
        self._bell.drop()
        self.following.drop()
        self._clearing.drop()


def _nothing() -> None:
    """Nobody waits for replicas."""
