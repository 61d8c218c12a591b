"""Addresses of servers: is this one, how does libpq want it, and how may it be shown.

`config` checks `redis.url`, `database.dsn` and `health.bind` here, and masks them when settings
are printed. An address may hold a password, so no problem found here repeats any of it.
"""

from __future__ import annotations

import re

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
    return value


def dsn(value: str) -> str:
    """Anything libpq takes, and the schemes of SQLAlchemy, turned into what libpq takes."""
    found = _POSTGRESQL.fullmatch(value)
    if found:
        return f"postgresql://{found['rest']}"
    if "\0" in value or not _PAIRS.fullmatch(value):
        raise ValueError("not a PostgreSQL address (write postgresql://user@host:5432/name, or "
                         '"host=... dbname=..."; percent-encode blanks, / and @ in a URL)')
    return value


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
