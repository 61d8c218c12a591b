"""Waits for a condition instead of sleeping for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "",
    *,
    poll: float = 0.005,
    ignore: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> T:
    """Call `condition` until its result is true and return the result.

    Fails with `message` after `timeout` seconds. `ignore`: exceptions that mean "not yet", such as
    those of a driver while its server is unavailable.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        # Check once more after the time is over: a pause of the machine may have used it up.
        asked = time.monotonic()
        try:
            last = answer = condition()
            if answer:
                return answer
        except ignore as error:
            last = error
        if asked > deadline:
            what = message() if callable(message) else message
            raise AssertionError(f"not within {timeout:g} s: {what or condition} (last: {last!r})")
        time.sleep(poll)
