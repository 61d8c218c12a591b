"""Refuses calls to a Redis that has just not answered in time.

After a call that timed out, the next ones fail at once for a second: each would otherwise hold its
thread, in an application usually a request, for the whole deadline. Then one call goes through as a
probe, and the others still fail at once until it has ended.
"""

from __future__ import annotations

import contextlib
import threading
import time

from processor.errors import RedisUnavailable

_PAUSE = 1.0


class Silence:
    """Whether a server is silent, as the threads of a process have found.

    `with silence:` stands around one call.
    """

    def __init__(self) -> None:
        #: The end of the pause (monotonic); None while the server answers.
        self._until: float | None = None
        self._why = ""
        self._probe = threading.Lock()

    def __enter__(self) -> None:
        """Raise RedisUnavailable while the server is silent; nothing is sent then."""
        until = self._until
        if until is None:
            return
        if time.monotonic() < until or not self._probe.acquire(blocking=False):
            refused = RedisUnavailable(self._why)
            refused.timed_out = True
            raise refused

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if isinstance(error, RedisUnavailable) and error.timed_out:
            self._why = str(error)
            self._until = time.monotonic() + _PAUSE
        elif self._until is None:
            return
        else:
            self._until = None
        # A call that began before the pause may end it too, while another one is the probe.
        with contextlib.suppress(RuntimeError):
            self._probe.release()
