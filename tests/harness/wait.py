"""Waiting for a condition, in place of sleeping for luck."""

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
    """Ask until the answer is true, and give that answer; fail with `message` after `timeout`.

    `ignore`: exceptions that mean "not yet", such as a driver's while its server is away.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        # It looks once more when the time is over: a pause of the machine may have taken it all.
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
