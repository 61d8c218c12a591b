"""Wakes the drain thread when another process adds an entry.

A small thread that blocks on Redis and sets the Event. It waits from the drain's cursor, for one
entry, and only while the drain thread waits (rule 30). Without it, such an entry would be found
only after the interval.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Set

from processor.connections.redis_client import Command, RedisConnection
from processor.errors import ProcessorError
from processor.telemetry import faults, metrics

log = logging.getLogger("processor.runtime")

#: Seconds that Redis itself waits for an entry.
_BLOCK = 2.0
#: Seconds before Redis is tried again after an error; they double with each further error. The
#: drain thread may be waiting meanwhile, and does not hear of an entry.
_RETRY = 0.02
_LONGEST_RETRY = 1.0


class Doorbell:
    """Started and stopped with the drain thread."""

    def __init__(self, event: threading.Event, redis: RedisConnection) -> None:
        self._event = event
        self._redis = redis
        self._condition = threading.Condition()
        self._streams: Mapping[str, str] = {}
        #: What was last read for.
        self._heard: Mapping[str, str] | None = None
        #: The streams of the read in progress, None if there is none.
        self._listening: Set[str] | None = None
        self._stopping = False
        self._retry = _RETRY
        self._thread = threading.Thread(target=self._run, name="processor-doorbell", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_for(self, streams: Mapping[str, str]) -> None:
        """Set the Event once there are entries after these ids, by stream.

        The drain thread calls this before it waits.
        """
        with self._condition:
            self._streams = streams
            self._condition.notify()
            if self._listening is not None and streams and not streams.keys() <= self._listening:
                # The read in progress does not see entries of the other lanes.
                self._redis.abort()

    def rest(self) -> None:
        """Do not set the Event: the drain thread works and finds new entries itself."""
        self._streams = {}

    def stop(self, timeout: float) -> None:
        """End the thread, which closes its connection."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            # Repeated, since the call that it cuts may only be about to begin.
            self._redis.abort()
            self._thread.join(0.02)

    def _run(self) -> None:
        while self._wanted():
            try:
                self._listen()
                self._retry = _RETRY
            except ProcessorError as error:
                # The drain thread runs into the same problem and reports it.
                log.debug("doorbell: retrying in %.2f s: %s", self._retry, error)
                self._pause()
            except Exception as error:
                # Without this thread, each entry of another process would wait for the interval.
                log.error("doorbell: failed, and is tried again: %s", faults.place(error))
                self._redis.close()
                self._pause()
        self._redis.close()

    def _pause(self) -> None:
        """Wait before the next try, unless the drain thread waits for other lanes meanwhile."""
        with self._condition:
            # After a `stop` that cut the call, nothing would notify this wait.
            if not self._stopping and self._streams.keys() <= (self._heard or {}).keys():
                self._condition.wait(self._retry)
                self._retry = min(2 * self._retry, _LONGEST_RETRY)

    def _wanted(self) -> bool:
        with self._condition:
            while not self._streams and not self._stopping:
                self._condition.wait()
            return not self._stopping

    def _listen(self) -> None:
        # Before the read counts as begun: `wait_for` can cut only a connection that is open.
        self._redis.open()
        with self._condition:
            streams = self._heard = self._streams
            if not streams:
                return
            self._listening = streams.keys()
        command: Command = (
            "XREAD", "COUNT", 1, "BLOCK", int(_BLOCK * 1000), "STREAMS", *streams,
            *streams.values(),
        )  # fmt: skip
        try:
            reply = self._redis.read([command], block=_BLOCK)[0]
        finally:
            self._listening = None
        if isinstance(reply, ProcessorError):
            raise reply
        if reply and streams is self._streams:
            metrics.count("rings")
            log.debug("doorbell: another process added an entry to %s", reply[0][0].decode())
            self.rest()
            self._event.set()
