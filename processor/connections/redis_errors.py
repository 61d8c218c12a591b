"""The errors of Redis and of its driver, in our words.

The driver's own text may quote arguments, and with them what a producer wrote, so only codes, names
of commands and the system's messages are taken from it (rule 19).
"""

from __future__ import annotations

import ssl

import redis

from processor.errors import RedisRefused, RedisUnavailable


def refusal(error: Exception) -> RedisRefused:
    """Return an error reply as a record. Raises what is no refusal of one command."""
    if isinstance(error, redis.exceptions.BusyLoadingError):
        raise RedisUnavailable(f"Redis is loading its data: {_code(error)}")
    if isinstance(error, redis.ResponseError):
        code = _code(error)
        return RedisRefused(code, _sentence(error), hint=_HINTS.get(code, ""))
    raise error


def _code(error: Exception) -> str:
    words = str(error).split()
    first = words[0] if words else ""
    # redis-py removes the code from errors that have a class of their own.
    return first if first.isupper() else _CODES.get(type(error).__name__, "ERR")


_HINTS = {
    "NOAUTH": "write redis://user:password@host into redis.url",
    "NOPERM": "give the user the rights that `processor print acl` prints",
}
_CLUSTER = frozenset({"CROSSSLOT", "MOVED", "ASK"})
_CODES = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ExecAbortError": "EXECABORT",
    "NoScriptError": "NOSCRIPT",
    "ClusterCrossSlotError": "CROSSSLOT",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
}


def _sentence(error: Exception) -> str:
    # Only ERR quotes arguments; other error replies name commands, keys and modes.
    code = _code(error)
    if code in _CLUSTER:
        return (f"Redis refused: {code} this server is part of a Redis Cluster, which is not"
                " supported: point redis.url at a server without cluster mode")  # fmt: skip
    text = "" if code == "ERR" else str(error)[:160].removeprefix(code)
    return f"Redis refused: {code} {text.strip()}".strip()


def silent(address: str, limit: float) -> RedisUnavailable:
    """Return the error of a server that did not answer within `limit` seconds."""
    found = RedisUnavailable(f"Redis at {address} did not respond within {limit:g} s")
    found.timed_out = True
    return found


def unavailable(
    error: Exception, address: str, limit: float, *, has_answered: bool = False
) -> RedisUnavailable:
    """Return an error of the driver, or of the system, that ended the connection.

    `has_answered`: on this connection, so that it is one with Redis.
    """
    if isinstance(error, RedisUnavailable):
        return error
    # The second one comes from the parser of older releases.
    timed_out = isinstance(error, (redis.exceptions.TimeoutError, TimeoutError))
    if timed_out and not _is_handshake(error):
        return silent(address, limit)
    if isinstance(error, redis.exceptions.AuthenticationError):
        refused = _credentials(error, address)
        refused.misconfigured = True
        return refused
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return RedisUnavailable("Redis is loading its data")
    if isinstance(error, redis.ResponseError):
        return _selection(error, address)
    if has_answered and str(error) == CLOSED:
        return RedisUnavailable(f"Redis at {address} closed the connection")
    if isinstance(error, redis.exceptions.InvalidResponse) or str(error) == CLOSED:
        return RedisUnavailable(f"the server at {address} does not answer as Redis does",
                                hint=_NOT_REDIS)
    if _is_handshake(error):
        return RedisUnavailable(f"the server at {address} does not answer with TLS",
                                hint="use redis:// in redis.url if Redis has no TLS there")
    return RedisUnavailable(f"Redis at {address} is unavailable: {_system_message(error)}")


#: The text of redis-py for it.
CLOSED = "Connection closed by server."
_NOT_REDIS = ("check host and port of redis.url: is another program there, or does Redis expect TLS"
              " (rediss://)?")


def _credentials(error: Exception, address: str) -> RedisUnavailable:
    text = str(error)
    if "without any password" in text:
        return RedisUnavailable(f"Redis at {address} has no password, but redis.url gives one",
                                hint="remove it from redis.url, or set requirepass in Redis")
    if "required" in text:
        return RedisUnavailable(f"Redis at {address} requires a password",
                                hint="write redis://user:password@host into redis.url")
    return RedisUnavailable(f"Redis at {address} refused the credentials",
                            hint="check user and password in redis.url")


def _selection(error: Exception, address: str) -> RedisUnavailable:
    """Return the error of a connection that Redis refused: the database number, as a rule."""
    if "DB index" in str(error):
        return RedisUnavailable(
            f"Redis at {address} has no database of this number",
            hint="give a smaller one at the end of redis.url; by default there are 0 to 15")
    return RedisUnavailable(f"Redis at {address} refused the connection", hint="check redis.url")


def _is_handshake(error: BaseException) -> bool:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError) and not isinstance(found, ssl.SSLCertVerificationError):
            return True
        if "handshake operation timed out" in str(found):
            return True
        found = found.__context__
    return False


def _system_message(error: BaseException) -> str:
    """Return the operating system's message; the driver's own may contain more than it should."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__context__
    return type(error).__name__
