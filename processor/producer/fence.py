"""What a write relies on: the identity, the partitions and the register of the buffer (rule 7).

A producer reads them when it opens a connection and has Redis watch their keys. Every write is
MULTI to EXEC, and Redis carries it out only if none of these keys has changed since: a key whose
lane is another one by now, or a lane that no processor knows of after Redis lost its data, is never
written to. The watch ends with EXEC, so it is renewed behind every write, in the same round trip.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from processor.buffer import partitions, registry
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, checked, pack
from processor.errors import RedisUnavailable

#: How often the keys are read again if another producer keeps changing them.
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Terms:
    """What one connection relies on: the identity of the buffer, and lanes that are registered.

    `renewal` has the commands behind each write, packed, and `replies` what the last two of them
    returned.
    """

    identity: str
    lanes: frozenset[str]
    renewal: bytes
    replies: list[Any]


#: The number of commands in `Terms.renewal`.
RENEWING = 3


def terms(connection: RedisConnection, settings: Settings, lanes: Collection[str]) -> Terms:
    """Return the terms on which these lanes are written to; agree on them first if necessary.

    Raises ConfigError, RedisUnavailable and RedisRefused.
    """
    known: Terms | None = connection.memory.get("terms") if connection.alive else None
    if known is not None and known.lanes.issuperset(lanes):
        return known
    names = known.lanes.union(lanes) if known is not None else lanes
    for _ in range(_TRIES):
        agreed = _agree(connection, settings, sorted(names))
        if agreed is not None:
            connection.memory["terms"] = agreed
            return agreed
    raise RedisUnavailable("the partitions of the queues change all the time")


def _agree(connection: RedisConnection, settings: Settings, names: Sequence[str]) -> Terms | None:
    """Watch what these lanes rely on. None if something was missing or different, and is no more.

    One round trip if everything is as it should be.
    """
    namespace = settings.namespace
    queues = sorted({name.rpartition(":")[0] for name in names})
    renewal: list[Command] = [
        ("WATCH", f"{namespace}:buffer", f"{namespace}:partitions", f"{namespace}:lanes"),
        ("GET", f"{namespace}:buffer"),
        ("HMGET", f"{namespace}:partitions", *queues),
    ]
    # MULTI is tried out first: a user that may not send it would write without it.
    asked = [registry.register(namespace, names), ("MULTI",), ("EXEC",), *renewal]
    replies = checked(connection.calls(asked))[-2:]
    counts = [settings.queues[queue].partitions for queue in queues]
    if replies[0] is not None and replies[1] == [b"%d" % count for count in counts]:
        identity = registry.identity_in(f"{namespace}:buffer", replies[0])
        packed = b"".join([pack(tuple(command)) for command in renewal])
        return Terms(identity, frozenset(names), packed, replies)
    registry.identity(connection, namespace)
    for queue, count in zip(queues, counts, strict=True):
        partitions.agree(connection, namespace, queue, count)
    return None


def renewed(connection: RedisConnection, agreed: Terms, replies: list[Any]) -> None:
    """Forget the terms if the replies to the last two commands of `renewal` are others by now."""
    if replies != agreed.replies:
        connection.memory.pop("terms", None)
