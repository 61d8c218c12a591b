"""The gate: shut during an outage (a circuit breaker in front of both servers).

While it is shut, work waits and one probe a second finds out whether the outage is over.
"""

from __future__ import annotations


class Gate:
    """Open or shut, with the reason and the time of the next probe.

    `now` is monotonic time in all methods. The first probe is due at once, since most outages of a
    session end with the next connect. Without the gate, producers that set the Event would make the
    drain thread hammer an unreachable server.
    """

    PROBE = 1.0
    #: An outage is reported again this often, seconds.
    REPORT = 60.0

    def __init__(self) -> None:
        self.reason = ""
        #: What the processor is meanwhile: outage, or misconfigured if a person has to act.
        self.status = "outage"
        self.since: float | None = None
        self._next = self._reported = 0.0

    @property
    def is_shut(self) -> bool:
        """Whether work has to wait."""
        return self.since is not None

    def shut(
        self, now: float, reason: str, *, jitter: float = 0.0, stale: bool = False,
        status: str = "outage",
    ) -> bool:  # fmt: skip
        """Record a failed call; True if it is to be reported.

        An outage is reported when it begins, when its status changes, and once a minute. `stale`
        means that the call failed on a session that was opened before this pass and may have ended
        unnoticed long ago; then the next probe is due at once, too.
        """
        began = self.since is None
        reports = began or status != self.status or now - self._reported >= self.REPORT
        if began:
            self.since = now
        if reports:
            self._reported = now
        self._next = now if began or stale else now + self.PROBE * (0.8 + 0.2 * jitter)
        self.reason, self.status = reason, status
        return reports

    def open(self, now: float) -> float | None:
        """Record a successful pass; the seconds that the outage lasted, None if there was none."""
        if self.since is None:
            return None
        lasted, self.since, self.reason = now - self.since, None, ""
        return lasted

    def wait(self, now: float) -> float:
        """Seconds until the next probe is due; zero if it is due or the gate is open."""
        return max(0.0, self._next - now) if self.is_shut else 0.0
