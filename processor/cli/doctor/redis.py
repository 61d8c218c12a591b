"""Checks of Redis: the durability of accepted entries, memory, user, link and lanes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from processor.admin import redis_acl
from processor.admin.findings import FAIL, OK, WARN, Finding
from processor.admin.wording import count
from processor.buffer.observation import BufferObservation
from processor.config import addresses
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused

_OLDEST = (6, 2)
#: Seconds for a call, and the share of a limit, above which there is a warning.
_SLOW = 0.010
_FULL = 0.8
_ADMIN = "run doctor once as an administrator of Redis: PROCESSOR_REDIS_URL=..."


def examine(
    redis: RedisConnection, settings: Settings, seen: BufferObservation
) -> Iterator[Finding]:
    """All checks of Redis."""
    info = _info(redis)
    if info is None:
        yield _finding("info", WARN, "INFO is not permitted, so most checks are skipped", _ADMIN)
        info = {}
    yield from _server(info)
    yield _persistence(redis, info, redis_acl.users(settings.namespace))
    yield from _writes(info)
    yield from _memory(info)
    yield _user(redis)
    yield _link(settings)
    yield _latency(redis)
    yield from _lanes(settings, seen)


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("redis", check, level, found, remedy)


def _info(redis: RedisConnection) -> dict[str, str] | None:
    try:
        text = redis.call("INFO").decode()
    except RedisRefused:
        return None
    return dict(row.split(":", 1) for row in text.splitlines() if ":" in row)


def _server(info: dict[str, str]) -> Iterator[Finding]:
    version = info.get("redis_version")
    if version:
        name = f"valkey {info['valkey_version']}" if "valkey_version" in info else "redis"
        supported = tuple(int(part) for part in version.split(".")[:2]) >= _OLDEST
        yield _finding("version", OK if supported else FAIL, f"{name}, compatible with {version}",
                       "" if supported else "use Redis 6.2 or later")
    if info.get("role", "master") != "master":
        yield _finding("role", FAIL, "this server is a replica and rejects writes",
                       "point redis.url at the primary")


def _persistence(
    redis: RedisConnection, info: dict[str, str], unprivileged: Sequence[str]
) -> Finding:
    # Each refused command is recorded in the ACL LOG of Redis, where it looks like an attack.
    asks = _user_name(redis) not in unprivileged
    append = (asks and _setting(redis, "appendonly")) or {"1": "yes", "0": "no"}.get(
        info.get("aof_enabled", "")
    )
    saves = _setting(redis, "save") if asks else None
    if append is None:
        return _finding("persistence", WARN, "could not be checked", _ADMIN)
    if append == "yes":
        return _fsync(_setting(redis, "appendfsync") if asks else None)
    if saves:
        return _finding("persistence", WARN, "snapshots alone: a crash of Redis loses minutes of"
                        " accepted transactions", "set appendonly yes")
    return _finding("persistence", WARN if saves is None else FAIL,
                    "appendonly no: a crash of Redis loses all accepted transactions",
                    "set appendonly yes, appendfsync everysec or always")


def _fsync(policy: str | None) -> Finding:
    if policy == "always":
        return _finding("persistence", OK, "appendfsync always: accepted transactions are on disk")
    if policy == "everysec":
        return _finding("persistence", OK, "appendfsync everysec: a crash of the machine may lose"
                        " two seconds of accepted transactions")
    if policy is None:
        return _finding("persistence", WARN, "appendonly yes; appendfsync could not be checked",
                        _ADMIN)
    return _finding("persistence", WARN, f"appendfsync {policy}: a crash of the machine may lose"
                    " half a minute of accepted transactions",
                    "set appendfsync everysec or always")


def _setting(redis: RedisConnection, name: str) -> str | None:
    try:
        reply = redis.call("CONFIG", "GET", name)
    except RedisRefused:
        return None
    return str(reply[1].decode()) if reply else None


def _writes(info: dict[str, str]) -> Iterator[Finding]:
    for field, action in (
        ("aof_last_write_status", "write to the AOF"), ("rdb_last_bgsave_status", "snapshot"),
    ):
        if info.get(field, "ok") != "ok":
            yield _finding("disk", FAIL, f"the last {action} failed: Redis rejects submits",
                           "check the disk and the log of Redis")


def _memory(info: dict[str, str]) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy")
    if policy is None:
        return
    if policy.startswith("allkeys"):
        yield _finding("eviction", FAIL, f"{policy}: Redis may evict accepted transactions",
                       "set maxmemory-policy noeviction")
    elif policy != "noeviction":
        yield _finding("eviction", WARN, f"{policy}: Redis may evict the states of processors",
                       "set maxmemory-policy noeviction")
    else:
        yield _finding("eviction", OK, "noeviction: a full Redis rejects writes and loses nothing")
    yield _room(int(info.get("maxmemory", 0)), int(info.get("used_memory", 0)))


def _room(limit: int, used: int) -> Finding:
    if not limit:
        return _finding("memory", WARN, "no maxmemory: in a long outage the system may kill Redis",
                        "set maxmemory, and choose buffer.limit to fit")
    share = used / limit
    return _finding("memory", WARN if share > _FULL else OK, f"{share:.0%} of maxmemory in use",
                    "raise maxmemory, or find out why nothing is drained" if share > _FULL else "")


def _user_name(redis: RedisConnection) -> str | None:
    try:
        return str(redis.call("ACL", "WHOAMI").decode())
    except RedisRefused:
        return None


def _user(redis: RedisConnection) -> Finding:
    name = _user_name(redis)
    if name is None:
        return _finding("user", OK, "a least-privilege user, which may not even read its name")
    if name == "default":
        return _finding("user", WARN, "user `default` has full access",
                        "create the least-privilege users of `processor print acl`")
    return _finding("user", OK, f"user {name}")


def _link(settings: Settings) -> Finding:
    parts = urlsplit(settings.redis.url)
    if parts.scheme in ("unix", "rediss"):
        return _finding("link", OK, "a Unix socket" if parts.scheme == "unix" else "TLS")
    if addresses.loopback(f"{_host(parts.hostname)}:{parts.port or 6379}"):
        return _finding("link", OK, "loopback")
    return _finding("link", WARN, f"unencrypted to {parts.hostname}",
                    "use rediss://, or an encrypted network")


def _host(name: str | None) -> str:
    return f"[{name}]" if name and ":" in name else name or "localhost"


def _latency(redis: RedisConnection) -> Finding:
    times = []
    for _ in range(9):
        started = time.monotonic()
        redis.call("TIME")
        times.append(time.monotonic() - started)
    median = sorted(times)[len(times) // 2]
    text = f"{median * 1000:.2f} ms a call, and so a submit"
    if median > _SLOW:
        return _finding("latency", WARN, text, "run Redis close to the application")
    return _finding("latency", OK, text)


def _lanes(settings: Settings, seen: BufferObservation) -> Iterator[Finding]:
    for queue in seen.paused:
        yield _finding("queues", WARN, f"{queue} is paused",
                       f"`processor queues resume {queue}`")
    entries = sum(look.depth for look in seen.lanes.values())
    full = [name for name, look in seen.lanes.items()
            if look.depth > _FULL * settings.buffer.limit]
    if full:
        yield _finding("lanes", WARN, f"nearly full: {', '.join(full)}",
                       "see `processor status`; raise buffer.limit if Redis has the memory")
    else:
        yield _finding("lanes", OK, f"{count(len(seen.lanes), 'lane')}, {count(entries, 'entry')}")
