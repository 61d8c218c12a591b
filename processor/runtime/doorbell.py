"""Rings when another process adds an entry: a small thread that blocks on Redis and sets the Event.

It waits from the drain's cursor, for one entry, and only while the drain thread waits (rule 30). It
does nothing else: without it work would be found at the next interval.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from processor.connections.redis_client import RedisConnection
from processor.errors import ProcessorError
from processor.telemetry import metrics

_BLOCK = 2.0
_AWAY = 1.0


class Doorbell:
    """Started and stopped with the drain thread."""

    def __init__(self, event: threading.Event, redis: RedisConnection) -> None:
        self._event = event
        self._redis = redis
        self._condition = threading.Condition()
        self._streams: Mapping[str, str] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="processor-doorbell", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_for(self, streams: Mapping[str, str]) -> None:
        """The drain thread waits now: ring for entries behind these ids, by stream."""
        with self._condition:
            self._streams = streams
            self._condition.notify()

    def rest(self) -> None:
        """The drain thread works: entries need no bell."""
        self._streams = {}

    def stop(self, timeout: float) -> None:
        """End the thread; it leaves its connection behind closed."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            # More than once: the call that is to be cut may be just about to begin.
            self._redis.abort()
            self._thread.join(0.02)

    def _run(self) -> None:
        while self._wanted():
            try:
                self._listen()
            except ProcessorError:
                # The drain thread meets the same trouble and reports it.
                with self._condition:
                    # `stop` cuts the call: its ring came before this wait.
                    if not self._stopping:
                        self._condition.wait(_AWAY)
        self._redis.close()

    def _wanted(self) -> bool:
        with self._condition:
            while not self._streams and not self._stopping:
                self._condition.wait()
            return not self._stopping

    def _listen(self) -> None:
        streams = self._streams
        if not streams:
            return
        reply = self._redis.calls(
            [
                (
                    "XREAD",
                    "COUNT",
                    1,
                    "BLOCK",
                    int(_BLOCK * 1000),
                    "STREAMS",
                    *streams,
                    *streams.values(),
                )
            ],
            block=_BLOCK,
        )[0]
        if isinstance(reply, ProcessorError):
            raise reply
        if reply and streams is self._streams:
            metrics.count("rings")
            self.rest()
            self._event.set()
