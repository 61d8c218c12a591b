"""Redis users with least privilege: each may send exactly the commands that its part uses.

The lines go into the ACL file of Redis, or one by one behind ACL SETUSER. No user may run scripts
or commands for administration. The processor's user also suffices for an application that submits
and drains in one process; it is trusted with the whole buffer.

Redis 7 has selectors, each with keys of its own: the producer's user adds to what producers write
and reads the rest, and the operator's user reads all and changes what operators decide. What a
producer can still do with its credentials is in the README. Redis 6.2 combines all commands of a
user with all of its keys. There the producer's user can also forge commit notes, positions of
replicas and parked records, and the operator's user can write every hash of the buffer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused

#: The first release with selectors.
SELECTORS = 7


@dataclass(frozen=True, slots=True)
class Grant:
    """Commands, and the keys that they may read (%R) and write (%W), without the namespace.

    `keys` are those of commands that need both, and of commands that look at neither content.
    """

    commands: tuple[str, ...]
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


_BUFFER = ("buffer", "partitions", "lanes")
_PLACES = ("{*}:stream", "{*}:scheduled", "{*}:parked", "{*}:retry", "{*}:commits")
_REPLICAS = ("primary", "replicas", "servers", "replayed", "{*}:replayed")
_OVERLAY_LISTS = (
    "overlay:table:*", "overlay:row:*", "overlay:wide:*", "overlay:statements", "overlay:cache:*",
)  # fmt: skip

_PRODUCER = (
    Grant(("exec", "multi", "time")),
    # What the buffer says of itself. A producer may complete it and change nothing (rule 7).
    Grant(("get", "hget", "hmget", "watch"), read=_BUFFER),
    Grant(("setnx",), write=("buffer",)),
    Grant(("hsetnx",), write=("partitions",)),
    Grant(("sadd",), write=("lanes",)),
    Grant(("xadd", "xlen"), write=("{*}:stream",)),
    Grant(("zadd", "zcard"), write=("{*}:scheduled",)),
    # Receipts, and replicas.
    Grant((
        "hget", "hmget", "xrange", "xread", "xrevrange", "zrangebyscore", "zscore",
    ), read=(*_PLACES, "replayed")),
    Grant(("get", "hgetall"), read=_REPLICAS),
    # Pending writes.
    Grant(("hlen", "hsetnx"), write=("overlay",)),
    Grant(("xadd",), write=("overlay:log",)),
    Grant(("rpush",), write=_OVERLAY_LISTS),
    Grant(("exists", "hexists", "hgetall", "hmget", "lrange"), read=("overlay", "overlay:*")),
)
_PROCESSOR = (
    Grant(("exec", "hello", "multi", "scan", "time")),
    Grant((
        "exists", "get", "hdel", "hexists", "hget", "hgetall", "hlen", "hmget", "hscan", "hset",
        "hsetnx", "lrange", "lrem", "rpush", "sadd", "set", "setnx", "smembers", "watch", "xadd",
        "xdel", "xinfo|stream", "xlen", "xrange", "xread", "xrevrange", "zadd", "zcard", "zcount",
        "zrange", "zrangebylex", "zrangebyscore", "zrem", "zscore",
    ), keys=("*",)),
)  # fmt: skip
_OPERATOR = (
    Grant(("acl|whoami", "hello", "info", "scan", "time")),
    Grant((
        "get", "hexists", "hget", "hgetall", "hlen", "hmget", "hscan", "smembers",
        "xinfo|stream", "xlen", "xrange", "zcard", "zrange", "zrangebylex", "zscan", "zscore",
    ), read=("*",)),
    Grant(("hdel", "hset"), write=("paused",)),
    Grant(("hincrby",), keys=("resumed",)),
    Grant(("sadd",), write=("lanes",)),
)  # fmt: skip

#: The printed users, by their part.
PARTS = {"producer": _PRODUCER, "processor": _PROCESSOR, "operator": _OPERATOR}
_PASSWORD = "CHANGE-ME"


def commands(part: str) -> set[str]:
    """The commands that the user for a part may send."""
    return {command for grant in PARTS[part] for command in grant.commands}


def lines(namespace: str, url: str = "", release: int = SELECTORS) -> list[str]:
    """One line per user, for a Redis of this major release.

    Each may SELECT only if `url` names another database than the first.
    """
    form = _with_selectors if release >= SELECTORS else _combined
    select = (Grant(("select",)),) if _database(url) else ()
    return [
        f"user {namespace}-{part} reset resetchannels on >{_PASSWORD}"
        f" {form(namespace, (*grants, *select))}"
        for part, grants in PARTS.items()
    ]


def users(namespace: str) -> list[str]:
    """The names of the printed users."""
    return [f"{namespace}-{part}" for part in PARTS]


def release_of(redis: RedisConnection) -> int | None:
    """The major release of a Redis; None if its user may not ask. Raises RedisUnavailable."""
    try:
        reply = redis.call("HELLO")
    except RedisRefused:
        return None
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    found = re.match(rb"\d+", fields.get(b"version", b""))
    return int(found[0]) if found else None


def _with_selectors(namespace: str, grants: Iterable[Grant]) -> str:
    """One selector for each grant. What touches no key needs none."""
    return " ".join(
        f"({' '.join(parts)})" if grant.read or grant.write or grant.keys else " ".join(parts)
        for grant in grants
        for parts in [[
            *(f"%R~{namespace}:{key}" for key in grant.read),
            *(f"%W~{namespace}:{key}" for key in grant.write),
            *(f"~{namespace}:{key}" for key in grant.keys),
            *(f"+{command}" for command in grant.commands),
        ]]
    )  # fmt: skip


def _combined(namespace: str, grants: Iterable[Grant]) -> str:
    """All commands with all keys."""
    grants = [*grants]
    keys = dict.fromkeys(key for g in grants for key in (*g.read, *g.write, *g.keys))
    if "*" in keys:
        keys = {"*": None}
    allowed = sorted({command for grant in grants for command in grant.commands})
    return " ".join([*(f"~{namespace}:{key}" for key in keys), *(f"+{each}" for each in allowed)])


def _database(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parse_qs(parts.query).get("db", ["0"]) != ["0"]
    return parts.path.strip("/") not in ("", "0")
