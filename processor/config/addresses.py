"""Addresses of servers: checked, converted to the form of libpq, and masked for display.

`settings` checks `redis.url`, `database.dsn` and `health.bind` here, and `loader` masks them when
settings are printed. An address may contain a password, so no error message here quotes any of it.

The drivers check each address and are imported only then: importing `processor` loads none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

MASK = "****"

_REDIS = re.compile(
    r"rediss?://(?:[^@/?#\s]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^@/:?#\s\[\]]*)(?::(?P<port>\d{1,5}))?"
    r"(?:/\d*)?(?:\?[^#\s]*)?"
)
_VALKEY = re.compile(r"^valkey(s?)://")
_POOL_SIZE = re.compile(r"(?<=[?&])max_connections=\d*&?")
_UNIX = re.compile(r"unix://(?:[^@/?#\s]*@)?/[^?#\s]+(?:\?[^#\s]*)?")
_POSTGRESQL = re.compile(r"(?:postgres(?:ql)?|postgis|pgsql|psql|timescale)(?:\+\w+)?://(?P<rest>\S*)")
# Possessive: without that a long bad string takes exponential time.
_QUOTED = r"'(?:[^'\\]|\\.)*+'"
_PLAIN = r"(?!')(?:[^\s\\]|\\.)*+"
_PAIRS = re.compile(rf"(?:\s*+[A-Za-z_]\w*+\s*+=\s*+(?:{_QUOTED}|{_PLAIN}))+\s*+", re.DOTALL)
_BIND = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+):(?P<port>\d{1,5})")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[(?:::1|(?:0{1,4}:){7}0{0,3}1)\]")

_UNKNOWN_OPTION = re.compile(
    r'invalid (?:URI query parameter|connection option)[^"]*"([a-z_]{3,40})"'
)
#: The options of libpq that people write into a DSN.
_LIBPQ = (
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "host",
    "hostaddr", "keepalives", "keepalives_idle", "load_balance_hosts", "options", "passfile",
    "password", "port", "service", "sslcert", "sslkey", "sslmode", "sslrootcert",
    "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip

# Up to the last @, since a password may contain an @ or / that the user forgot to encode.
_USERINFO = re.compile(r"^([\w+.-]+://[^:@/?#]*:).*@", re.DOTALL)
_PARAMETER = re.compile(r"([?&][^=&]*password[^=&]*=)[^&]*", re.IGNORECASE)
_KEYWORD = re.compile(rf"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*+'?|{_PLAIN})", re.DOTALL)


def redis_url(value: str) -> str:
    """The URL as redis-py accepts it. Raises ValueError if it does not accept it.

    Valkey's schemes are Redis', and the size of a pool means nothing here: it is ours.
    """
    value = _POOL_SIZE.sub("", _VALKEY.sub(r"redis\1://", value)).rstrip("?&")
    found = _REDIS.fullmatch(value)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        found = _UNIX.fullmatch(value)
    if found is None:
        raise ValueError("is not a Redis address (write redis://user:password@host:6379/0, "
                         "rediss:// for TLS, or unix:///path; percent-encode / and @ in it)")
    return _accepted_by_redis(value)


def _accepted_by_redis(value: str) -> str:
    import redis.connection

    try:
        options = dict(redis.connection.parse_url(value))  # type: ignore[no-untyped-call]
        options.pop("connection_class", redis.Connection)(**options)
    except (ValueError, TypeError, redis.RedisError):
        raise ValueError("is not accepted by the Redis client (check the options after the ?; "
                         "TLS options need rediss://)") from None
    return value


def dsn(value: str) -> str:
    """The address as libpq accepts it; schemes of SQLAlchemy are converted. Raises ValueError."""
    found = _POSTGRESQL.fullmatch(value)
    if found is None and ("\0" in value or not _PAIRS.fullmatch(value)):
        raise ValueError("is not a PostgreSQL address (write postgresql://user@host:5432/name, or "
                         '"host=... dbname=..."; percent-encode spaces, / and @ in a URL)')
    if found:
        value = f"postgresql://{found['rest']}"
        where, _, rest = found["rest"].partition("?")[0].partition("/")
        # libpq reads everything before the first @ as user and password.
        if where.count("@") > 1 or "@" in rest:
            raise ValueError("has an unexpected @ (percent-encode %, / and @ in a password)")
    lists, count = _lists(value)
    ports = lists.get("port", [])
    if not all(p == "" or (p.isdecimal() and 0 < int(p) < 65536) for p in ports):
        raise ValueError("has a port outside 1 to 65535 (percent-encode %, / and @ in a password)")
    if any(len(each) not in (1, count) for each in lists.values()):
        raise ValueError("has a different number of ports than hosts (give one port, "
                         "or one for each host)")
    return value


def _parts(dsn: str) -> dict[str, str]:
    import psycopg2.extensions

    try:
        return dict(psycopg2.extensions.parse_dsn(dsn))
    except psycopg2.Error as error:
        raise ValueError(f"is not accepted by libpq ({_meant(str(error))}"
                         "percent-encode %, / and @ in a password)") from None


def _meant(message: str) -> str:
    """What to check about the options: the message of libpq itself may quote part of a password."""
    found = _UNKNOWN_OPTION.search(message)
    near = get_close_matches(found[1], _LIBPQ, 1) if found else []
    return f"did you mean the option {near[0]}? " if near else "check the names of the options; "


def hosts(dsn: str) -> list[dict[str, str]]:
    """For each host of `dsn`, the parameters that select it; [{}] if there is at most one host."""
    found, count = _lists(dsn)
    if count == 1:
        return [{}]
    return [
        {name: values[index if len(values) > 1 else 0] for name, values in found.items()}
        for index in range(count)
    ]


def _lists(dsn: str) -> tuple[dict[str, list[str]], int]:
    """The values that `dsn` lists for host, hostaddr and port, and the number of its hosts."""
    parts = _parts(dsn)
    found = {n: parts[n].split(",") for n in ("host", "hostaddr", "port") if parts.get(n)}
    return found, max((len(found[n]) for n in ("host", "hostaddr") if n in found), default=1)


def host_port(dsn: str, host: Mapping[str, Any]) -> str:
    """The name of a server in error messages: host:port of `dsn`, with `host` from `hosts`."""
    parts = {**_parts(dsn), **host}
    name = parts.get("host") or parts.get("hostaddr")
    return f"{name}:{parts.get('port') or 5432}" if name else "its default address"


def with_host(dsn: str, host: Mapping[str, Any]) -> str:
    """`dsn` with the parameters in `host` instead of its own, as keywords and values."""
    import psycopg2.extensions

    return str(psycopg2.extensions.make_dsn(dsn, **host))


def bind(value: str) -> str:
    """host:port; empty: do not listen; port 0: any free port. Raises ValueError."""
    found = _BIND.fullmatch(value)
    if value and not (found and int(found["port"]) < 65536):
        raise ValueError('is not host:port (write "127.0.0.1:8787" or "[::1]:8787", in quotes; '
                         'write "" to disable)')
    return value


def loopback(value: str) -> bool:
    """Whether only this machine can reach the host:port `value`; an empty one: yes."""
    found = _BIND.fullmatch(value)
    return not found or _LOOPBACK.fullmatch(found["host"].lower()) is not None


def masked(value: str) -> str:
    """The address with its passwords replaced: a URL, or keywords and values as libpq has them."""
    if "://" not in value.partition("=")[0]:
        return _KEYWORD.sub(rf"\1{MASK}", value)
    return _PARAMETER.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1{MASK}@", value))
