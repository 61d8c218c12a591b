"""`doctor`, the checklist before production: seven lines, judged by what was found before.

Small messages, repeatable work, leases, dead letters and alerting, monitoring, security, load
tests: what any such system is asked before it goes live, with our answer and where it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from processor.buffer.lane import Lane
from processor.buffer.stream import entries
from processor.cli import output
from processor.cli.doctor.finding import OK, WARN, Finding
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
    """The seven lines. `average` is the size of the entries that lie in the buffer, bytes."""
    yield _messages(settings, average)
    yield _repeatable(settings)
    yield _leases(settings, found)
    yield _dead_letters(settings, found)
    yield _monitoring(settings, found)
    yield _security(found)
    yield _line("load tests", WARN, "cannot be seen from here",
                "`processor demo` for the failures; your peak against a copy of your servers")


def _line(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("checklist", check, level, found, remedy)


def _messages(settings: Settings, average: float | None) -> Finding:
    if average is not None and average > _SMALL:
        return _line("small messages", WARN, f"entries have {average / 1024:.0f} KiB on average",
                     "store large content elsewhere and submit a reference")
    limit = f"none may have more than {settings.buffer.transaction_bytes / 1024:.0f} KiB"
    seen = "" if average is None else f"entries have {average:.0f} bytes on average, "
    return _line("small messages", OK, f"{seen}{limit}")


def _repeatable(settings: Settings) -> Finding:
    days = settings.ledger.retention / _DAY
    if days < 1:
        return _line("repeatable work", WARN,
                     f"the ledger forgets an id after {output.seconds(settings.ledger.retention)}",
                     "raise ledger.retention above any delay of a submission that is repeated")
    return _line("repeatable work", OK, f"an id is one effect for {days:.0f} days;"
                 f" {settings.retry.attempts} attempts before a dead letter")


def _leases(settings: Settings, found: Sequence[Finding]) -> Finding:
    if not _good(found, {("postgresql", "timeouts")}):
        return _line("leases", WARN, "not seen in force", "see the lines of postgresql")
    return _line("leases", OK, "a lane is owned by a session and fenced in each commit; a frozen"
                 f" owner is replaced after {settings.database.takeover:g} s")


def _dead_letters(settings: Settings, found: Sequence[Finding]) -> Finding:
    table, letters = ("postgresql", "schema"), ("postgresql", "dead letters")
    if not _good(found, {table}) or _worse(found, {letters}):
        return _line("dead letters and alerting", WARN, "they wait, or their table is not seen",
                     "see the lines of postgresql")
    if not settings.health.bind:
        return _line("dead letters and alerting", WARN, "health.bind is empty: nothing can alert",
                     "set it and watch processor_dead_letters in /metrics")
    return _line("dead letters and alerting", OK, "alert on dead letters and on /health in"
                 f" http://{settings.health.bind}/metrics")


def _monitoring(settings: Settings, found: Sequence[Finding]) -> Finding:
    if not _good(found, _WATCHED) or not settings.health.bind:
        return _line("monitoring", WARN, "no processor, or its pages are not seen",
                     "see the lines of host")
    return _line("monitoring", OK, "/health, /metrics and the log"
                 f" ({settings.log.format}); `trace` travels with a transaction")


def _security(found: Sequence[Finding]) -> Finding:
    bad = _worse(found, _SECURITY)
    if not bad and not _good(found, {("redis", "link"), ("postgresql", "link")}):
        return _line("security", WARN, "a server was not seen", "see the lines above")
    if bad:
        names = ", ".join(f"{each.section} {each.check}" for each in bad)
        return _line("security", WARN, f"see {names}", "least privilege, and encrypted links")
    return _line("security", OK, "users of few rights, no unencrypted link")


def _worse(found: Sequence[Finding], checks: set[tuple[str, str]]) -> list[Finding]:
    return [each for each in found if (each.section, each.check) in checks and each.level != OK]


def _good(found: Sequence[Finding], checks: set[tuple[str, str]]) -> bool:
    """Whether all of these were examined, and found to be well."""
    seen = {(each.section, each.check) for each in found}
    return checks <= seen and not _worse(found, checks)


def average_size(redis: RedisConnection, namespace: str, lanes: Sequence[str]) -> float | None:
    """The size of the entries at the head of the lanes, in bytes."""
    sizes: list[int] = []
    for name in lanes:
        stream = Lane(namespace, name).stream
        reply = redis.call("XRANGE", stream, "-", "+", "COUNT", _SAMPLE)
        sizes += [len(raw[3]) for raw in entries(reply)]
    return sum(sizes) / len(sizes) if sizes else None
