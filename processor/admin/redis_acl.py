"""Redis users with least privilege: each may send exactly the commands that its part uses.

The lines go into the ACL file of Redis, or one by one behind ACL SETUSER. No user may run scripts
or commands for administration. The producer's user can remove no entry from the buffer; it reads
what receipts and reads of pending writes need. The processor's user also suffices for an
application that submits and drains in one process.

A producer is trusted more than this sounds. Redis 6.2 combines all commands of a user with all of
its keys, so that the producer's user can write forged commit notes, replica positions, pending
writes and parked records, and can read the entries of all producers that share the buffer. The
owner of a lane and the commands for operators check what they read. Give a producer that you do not
trust a buffer of its own.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

PRODUCER = (
    "exec", "exists", "get", "hexists", "hget", "hgetall", "hlen", "hmget", "hset", "hsetnx",
    "lrange", "multi", "rpush", "sadd", "set", "time", "watch", "xadd", "xlen", "xrange",
    "xread", "xrevrange", "zadd", "zcard", "zscore",
)  # fmt: skip
PROCESSOR = (
    "exec", "exists", "get", "hdel", "hello", "hexists", "hget", "hgetall", "hlen", "hmget",
    "hscan", "hset", "hsetnx", "lrange", "lrem", "multi", "rpush", "sadd", "set", "smembers",
    "time", "watch", "xadd", "xdel", "xinfo|stream", "xlen", "xrange", "xread", "xrevrange", "zadd",
    "zcard", "zcount", "zrange", "zrangebylex", "zrangebyscore", "zrem", "zscore",
)
OPERATOR = (
    "acl|whoami", "get", "hdel", "hexists", "hget", "hgetall", "hincrby", "hlen", "hmget", "hscan",
    "hset", "info", "sadd", "scan", "smembers", "time", "xinfo|stream", "xlen", "xrange", "zcard",
    "zrange", "zrangebylex", "zscan", "zscore",
)

# The keys that a producer may use. The identity and the register are shared by all lanes.
_PRODUCED = ("buffer", "lanes", "partitions", "primary", "replicas", "replayed", "servers",
             "{*}:stream", "{*}:scheduled", "{*}:commits", "{*}:parked", "{*}:retry",
             "{*}:replayed", "overlay", "overlay:*")
_PASSWORD = "CHANGE-ME"


def lines(namespace: str, url: str = "") -> list[str]:
    """One line per user. Each may SELECT only if `url` names another database than the first."""
    select = ("select",) if _database(url) else ()
    produced = [f"{namespace}:{part}" for part in _PRODUCED]
    every = [f"{namespace}:*"]
    return [
        _line(f"{namespace}-producer", produced, (*PRODUCER, *select)),
        _line(f"{namespace}-processor", every, (*PROCESSOR, *select)),
        _line(f"{namespace}-operator", every, (*OPERATOR, *select)),
    ]


def users(namespace: str) -> list[str]:
    """The names of the printed users."""
    return [f"{namespace}-{part}" for part in ("producer", "processor", "operator")]


def _line(user: str, patterns: list[str], commands: tuple[str, ...]) -> str:
    keys = " ".join(f"~{pattern}" for pattern in patterns)
    allowed = " ".join(f"+{command}" for command in commands)
    return f"user {user} reset resetchannels on >{_PASSWORD} {keys} {allowed}"


def _database(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parse_qs(parts.query).get("db", ["0"]) != ["0"]
    return parts.path.strip("/") not in ("", "0")
