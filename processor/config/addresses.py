"""Addresses of servers: is this one, how does libpq want it, and how may it be shown.

`config` checks `redis.url`, `database.dsn` and `health.bind` here, and masks them when settings
are printed. An address may hold a password, so no problem found here repeats any of it.

The drivers are asked whether they understand an address, when there is one: who imports `processor`
loads none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "****"

_REDIS = re.compile(
    r"rediss?://(?:[^@/?#\s]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^@/:?#\s\[\]]*)(?::(?P<port>\d{1,5}))?"
    r"(?:/\d*)?(?:\?[^#\s]*)?"
)
_UNIX = re.compile(r"unix://(?:[^@/?#\s]*@)?/[^?#\s]+(?:\?[^#\s]*)?")
_POSTGRESQL = re.compile(r"postgres(?:ql)?(?:\+\w+)?://(?P<rest>\S*)")
# Possessive: without that a long bad string takes exponential time.
_QUOTED = r"'(?:[^'\\]|\\.)*+'"
_PLAIN = r"(?!')(?:[^\s\\]|\\.)*+"
_PAIRS = re.compile(rf"(?:\s*+[A-Za-z_]\w*+\s*+=\s*+(?:{_QUOTED}|{_PLAIN}))+\s*+", re.DOTALL)
_BIND = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+):(?P<port>\d{1,5})")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[(?:::1|(?:0{1,4}:){7}0{0,3}1)\]")

# Up to the last @, since a password may hold an @ or / that its writer forgot to encode.
_USERINFO = re.compile(r"^([\w+.-]+://[^:@/?#]*:).*@", re.DOTALL)
_PARAMETER = re.compile(r"([?&][^=&]*password[^=&]*=)[^&]*", re.IGNORECASE)
_KEYWORD = re.compile(rf"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*+'?|{_PLAIN})", re.DOTALL)


def redis_url(value: str) -> str:
    found = _REDIS.fullmatch(value)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        found = _UNIX.fullmatch(value)
    if found is None:
        raise ValueError("not a Redis address (write redis://user:password@host:6379/0, rediss:// "
                         "for TLS, or unix:///path; percent-encode / and @ in a password)")
    return _seen_by_redis(value)


def _seen_by_redis(value: str) -> str:
    import redis.connection

    try:
        options = dict(redis.connection.parse_url(value))  # type: ignore[no-untyped-call]
        options.pop("connection_class", redis.Connection)(**options)
    except (ValueError, TypeError, redis.RedisError):
        raise ValueError("the Redis client does not understand it (see the options after the ?; "
                         "those of TLS go with rediss://)") from None
    return value


def dsn(value: str) -> str:
    """Anything libpq takes, and the schemes of SQLAlchemy, turned into what libpq takes."""
    found = _POSTGRESQL.fullmatch(value)
    if found is None and ("\0" in value or not _PAIRS.fullmatch(value)):
        raise ValueError("not a PostgreSQL address (write postgresql://user@host:5432/name, or "
                         '"host=... dbname=..."; percent-encode blanks, / and @ in a URL)')
    if found:
        value = f"postgresql://{found['rest']}"
        where, _, rest = found["rest"].partition("?")[0].partition("/")
        # libpq takes what stands before the first of them for the user and password.
        if where.count("@") > 1 or "@" in rest:
            raise ValueError("has an @ out of place (percent-encode %, / and @ in a password)")
    lists, count = _lists(value)
    ports = lists.get("port", [])
    if not all(p == "" or (p.isdecimal() and 0 < int(p) < 65536) for p in ports):
        raise ValueError("a port is not 1 to 65535 (percent-encode %, / and @ in a password)")
    if any(len(each) not in (1, count) for each in lists.values()):
        raise ValueError("has another number of ports than of hosts (give one port, or one each)")
    return value


def _parts(dsn: str) -> dict[str, str]:
    import psycopg2.extensions

    try:
        return dict(psycopg2.extensions.parse_dsn(dsn))
    except psycopg2.Error:
        # Its own words may quote a piece of a password.
        raise ValueError("libpq does not understand it (see the names of its options; "
                         "percent-encode %, / and @ in a password)") from None


def hosts(dsn: str) -> list[dict[str, str]]:
    """What to override in `dsn` for each of its hosts; one empty override if it has one or none."""
    found, count = _lists(dsn)
    if count == 1:
        return [{}]
    return [
        {name: values[place if len(values) > 1 else 0] for name, values in found.items()}
        for place in range(count)
    ]


def _lists(dsn: str) -> tuple[dict[str, list[str]], int]:
    """What `dsn` lists for its hosts, and how many they are."""
    parts = _parts(dsn)
    found = {n: parts[n].split(",") for n in ("host", "hostaddr", "port") if parts.get(n)}
    return found, max((len(found[n]) for n in ("host", "hostaddr") if n in found), default=1)


def place(dsn: str, host: Mapping[str, Any]) -> str:
    """How errors name a server: host:port of `dsn` with the override `host`, or its socket."""
    parts = {**_parts(dsn), **host}
    name = parts.get("host") or parts.get("hostaddr")
    return f"{name}:{parts.get('port') or 5432}" if name else "its default address"


def bind(value: str) -> str:
    """host:port, or nothing: do not listen. Port 0 takes any free one."""
    found = _BIND.fullmatch(value)
    if value and not (found and int(found["port"]) < 65536):
        raise ValueError('not host:port (write "127.0.0.1:8787" or "[::1]:8787", in quotes; '
                         '"" listens nowhere)')
    return value


def loopback(value: str) -> bool:
    found = _BIND.fullmatch(value)
    return not found or _LOOPBACK.fullmatch(found["host"].lower()) is not None


def masked(value: str) -> str:
    """The address without its passwords, in either form of libpq and in that of Redis."""
    if "://" not in value.partition("=")[0]:
        return _KEYWORD.sub(rf"\1{MASK}", value)
    return _PARAMETER.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1{MASK}@", value))
