"""Messages to systemd (sd_notify): one datagram each, to the socket that NOTIFY_SOCKET names.

Without that variable nothing is sent. A message that cannot be sent is dropped: systemd judges by
the messages that it receives, and the work must not wait for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

# While systemd re-executes itself, it does not read the socket, whose queue is then soon full.
_SEND_TIMEOUT = 0.5


class Notifier:
    """Sends to the service manager that started this process, if any.

    `watchdog` is the time in seconds after which systemd kills a service that sends no progress; 0
    if it does not.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._status = ""
        self.watchdog = _watchdog(environ) if self._address else 0.0

    def ready(self, status: str) -> None:
        """The service has started, or has finished its reload."""
        self._send("READY=1", f"STATUS={self._remember(status)}")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it. systemd recognizes the reload by the time."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The service finishes its current batch and exits."""
        self._send("STOPPING=1", f"STATUS={self._remember(status)}")

    def alive(self) -> None:
        """Feed the watchdog. Call it only after observed progress (rule 31)."""
        self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """One line for people; sent only if it differs from the previous one."""
        if status != self._status:
            self._send(f"STATUS={self._remember(status)}")

    def _remember(self, status: str) -> str:
        self._status = " ".join(status.split())  # a line break would start another assignment
        return self._status

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(_SEND_TIMEOUT)
                out.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            pass


def _address(name: str) -> str:
    """A path, or an abstract name, which is written with @ in place of the leading NUL."""
    return "\0" + name[1:] if name.startswith("@") else name


def _watchdog(environ: Mapping[str, str]) -> float:
    """The watchdog in seconds; 0 if there is none or it watches another process."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID") or str(os.getpid())
    if not microseconds.isdecimal() or watched != str(os.getpid()):
        return 0.0
    return int(microseconds) / 1e6
