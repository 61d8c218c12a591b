"""The checklist before production: seven lines, judged by the findings of the other checks.

Small messages, repeatable work, leases, dead letters and alerting, monitoring, security, load
tests: the questions that any such system must answer before it goes live.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from processor.admin.findings import OK, WARN, Finding
from processor.admin.wording import seconds
from processor.buffer.lane import Lane
from processor.buffer.stream import entries
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection

_SMALL = 64 * 1024
_SAMPLE = 20
_DAY = 86_400.0
_SECURITY = {("redis", "user"), ("redis", "link"), ("postgresql", "role"), ("postgresql", "link"),
             ("host", "secrets")}
_WATCHED = {("host", "health"), ("host", "processors")}


def go_through(
    settings: Settings, found: Sequence[Finding], average: float | None
) -> Iterator[Finding]:
    """The seven lines. `average` is the average size of the entries in the buffer, in bytes."""
    yield _messages(settings, average)
    yield _repeatable(settings)
    yield _leases(settings, found)
    yield _dead_letters(settings, found)
    yield _monitoring(settings, found)
    yield _security(found)
    yield _line("load tests", WARN, "cannot be checked from here",
                "try failures with `processor demo`, and your peak load on a copy of your servers")


def _line(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("checklist", check, level, found, remedy)


def _messages(settings: Settings, average: float | None) -> Finding:
    if average is not None and average > _SMALL:
        return _line("small messages", WARN, f"entries have {average / 1024:.0f} KiB on average",
                     "store large content elsewhere and submit a reference")
    seen = "" if average is None else f"entries have {average:.0f} bytes on average; "
    limit = f"the limit is {settings.buffer.transaction_bytes / 1024:.0f} KiB"
    return _line("small messages", OK, f"{seen}{limit}")


def _repeatable(settings: Settings) -> Finding:
    days = settings.ledger.retention / _DAY
    if days < 1:
        return _line("repeatable work", WARN,
                     f"the ledger forgets an id after {seconds(settings.ledger.retention)}",
                     "raise ledger.retention above the longest delay of a repeated submit")
    return _line("repeatable work", OK, f"an id is applied once within {days:.0f} days;"
                 f" {settings.retry.attempts} attempts before a dead letter")


def _leases(settings: Settings, found: Sequence[Finding]) -> Finding:
    if not _good(found, {("postgresql", "timeouts")}):
        return _line("leases", WARN, "the timeouts could not be verified",
                     "see the findings of postgresql")
    return _line("leases", OK, "a session owns each lane, and each commit is fenced; a frozen"
                 f" owner is replaced after {settings.database.takeover:g} s")


def _dead_letters(settings: Settings, found: Sequence[Finding]) -> Finding:
    table, letters = ("postgresql", "schema"), ("postgresql", "dead letters")
    if not _good(found, {table}) or _worse(found, {letters}):
        return _line("dead letters and alerting", WARN,
                     "dead letters are waiting, or their table is unreadable",
                     "see the findings of postgresql")
    if not settings.health.bind:
        return _line("dead letters and alerting", WARN, "health.bind is empty: nothing can alert",
                     "set it, and alert on processor_dead_letters in /metrics")
    return _line("dead letters and alerting", OK, "alert on dead letters and on /health in"
                 f" http://{settings.health.bind}/metrics")


def _monitoring(settings: Settings, found: Sequence[Finding]) -> Finding:
    if not _good(found, _WATCHED) or not settings.health.bind:
        return _line("monitoring", WARN, "no processor, or its pages are unreachable",
                     "see the findings of host")
    return _line("monitoring", OK, "/health, /metrics and the log"
                 f" ({settings.log.format}); `trace` travels with a transaction")


def _security(found: Sequence[Finding]) -> Finding:
    bad = _worse(found, _SECURITY)
    if not bad and not _good(found, {("redis", "link"), ("postgresql", "link")}):
        return _line("security", WARN, "a server could not be checked", "see the findings above")
    if bad:
        names = ", ".join(f"{each.section} {each.check}" for each in bad)
        return _line("security", WARN, f"see {names}", "use least privilege, and encrypt links")
    return _line("security", OK, "least-privilege users, no unencrypted link")


def _worse(found: Sequence[Finding], checks: set[tuple[str, str]]) -> list[Finding]:
    return [each for each in found if (each.section, each.check) in checks and each.level != OK]


def _good(found: Sequence[Finding], checks: set[tuple[str, str]]) -> bool:
    """Whether all of these checks ran, and none found a problem."""
    seen = {(each.section, each.check) for each in found}
    return checks <= seen and not _worse(found, checks)


def average_size(redis: RedisConnection, namespace: str, lanes: Sequence[str]) -> float | None:
    """The average size of the first entries of the lanes, in bytes; None if there are none."""
    sizes: list[int] = []
    for name in lanes:
        stream = Lane(namespace, name).stream
        reply = redis.call("XRANGE", stream, "-", "+", "COUNT", _SAMPLE)
        sizes += [len(raw[3]) for raw in entries(reply)]
    return sum(sizes) / len(sizes) if sizes else None
