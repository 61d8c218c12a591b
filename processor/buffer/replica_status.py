"""How far each replica is, and what a failover lost, as published in Redis for all processes.

======================= ========= ==================================================================
<ns>:replicas           hash      replica -> its status, as JSON (`Replica`)
<ns>:servers            hash      replica -> the server that has this name now, and when that was
                                  published (`NamedServer`)
<ns>:{<lane>}:replayed  hash      replica -> position up to which it has the commits of this lane,
                                  and the server that showed them
<ns>:replayed           stream    one entry each time a replica advanced, bounded; waiters read it:
                                  replica, position, lanes
<ns>:primary            string    system identifier and timeline of the primary last written to
<ns>:losses             stream    commits that a failover lost, bounded: from, to, ids
======================= ========= ==================================================================

A position published for a lane is exact for this lane, across promotions (see `commit_marks`). It
counts only while the name belongs to the server that showed it. A name may be given to another
server, and a restarted server may be an older copy, or show less than before.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection
from processor.connections.wal_position import Position
from processor.errors import RedisRefused
from processor.telemetry.status import Replica

_DIGITS = re.compile("[0-9]+").fullmatch
_REPLAYED_KEPT = 1_000
_LOSSES_KEPT = 1_000
_IDS_PER_LOSS = 1_000


@dataclass(frozen=True, slots=True)
class NamedServer:
    """The server that has the name of a replica, as published at a time (Unix seconds)."""

    server: str
    published: float


# Replicas and their positions.


def publish(namespace: str, name: str, replica: Replica) -> Command:
    """Publish the status of a replica."""
    return ("HSET", f"{namespace}:replicas", name, msgspec.json.encode(replica))


def publish_server(namespace: str, name: str, server: str, at: float) -> Command:
    """Publish which server has the name of a replica."""
    return ("HSET", f"{namespace}:servers", name, f"{server} {at!r}")


def withdraw(namespace: str, name: str, lanes: Sequence[Lane]) -> list[Command]:
    """Invalidate the positions published for the previous server of this name.

    Without a server none of its positions counts, in any lane; Redis accepts this removal even when
    it is full. Those of `lanes` are removed for good.
    """
    return [
        ("HDEL", f"{namespace}:servers", name),
        *(("HDEL", lane.replayed, name) for lane in lanes),
        _replayed(namespace, name),
    ]


def publish_position(
    namespace: str, name: str, server: str, position: Position, lanes: Sequence[Lane], at: float
) -> list[Command]:
    """Publish that a replica has the commits of these lanes up to a position."""
    text = str(position)
    names = ",".join(lane.name for lane in lanes)
    return [
        *(("HSET", lane.replayed, name, f"{text} {server}") for lane in lanes),
        _replayed(namespace, name, "position", text, "lanes", names, "at", repr(at)),
    ]


def _replayed(namespace: str, name: str, *fields: str) -> Command:
    return (
        "XADD", f"{namespace}:replayed", "MAXLEN", "~", _REPLAYED_KEPT, "*",
        "replica", name, *fields,
    )  # fmt: skip


def replicas(redis: RedisConnection, namespace: str) -> dict[str, Replica]:
    """Return every replica that was ever published. Raises RedisUnavailable and RedisRefused."""
    return parse_replicas(redis.call("HGETALL", f"{namespace}:replicas"))


def parse_replicas(reply: Any) -> dict[str, Replica]:
    """Return the replicas in the reply to HGETALL <ns>:replicas."""
    found = {}
    for name, text in zip(reply[::2], reply[1::2], strict=True):
        with contextlib.suppress(msgspec.MsgspecError):
            found[name.decode(errors="replace")] = msgspec.json.decode(text, type=Replica)
    return found


def servers(redis: RedisConnection, namespace: str) -> dict[str, NamedServer]:
    """Return the server of each replica's name. Raises RedisUnavailable and RedisRefused."""
    return parse_servers(redis.call("HGETALL", f"{namespace}:servers"))


def parse_servers(reply: Any) -> dict[str, NamedServer]:
    """Return the server of each name in the reply to HGETALL <ns>:servers."""
    found = {}
    for name, (server, at) in _pairs(reply):
        with contextlib.suppress(ValueError):
            found[name] = NamedServer(server, float(at))
    return found


def parse_positions(reply: Any, named: Mapping[str, NamedServer]) -> dict[str, Position]:
    """Return the position of each replica in the reply to HGETALL of a lane's `:replayed`.

    A position counts only if `named` still has the server that showed it.
    """
    found = {}
    for name, (position, server) in _pairs(reply):
        with contextlib.suppress(ValueError):
            if name in named and named[name].server == server:
                found[name] = Position.parse(position)
    return found


def _pairs(reply: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, text in zip(reply[::2], reply[1::2], strict=True):
        first, _, second = text.decode(errors="replace").partition(" ")
        yield name.decode(errors="replace"), (first, second)


# The primary, and what a failover lost.


def primary(redis: RedisConnection, namespace: str) -> tuple[str, int] | None:
    """Return system identifier and timeline of the primary that was last written to."""
    return parse_primary(redis.call("GET", f"{namespace}:primary"))


def parse_primary(reply: Any) -> tuple[str, int] | None:
    """Return system identifier and timeline in the reply to GET <ns>:primary."""
    system, separator, timeline = (reply or b"").decode(errors="replace").partition("/")
    return (system, int(timeline)) if separator and _DIGITS(timeline) else None


def publish_primary(namespace: str, system: str, timeline: int) -> Command:
    """Publish which primary is written to."""
    return ("SET", f"{namespace}:primary", f"{system}/{timeline}")


def record_losses(namespace: str, before: str, after: str, ids: Sequence[str]) -> list[Command]:
    """Record the ids of transactions whose commit a failover lost."""
    return [
        ("XADD", f"{namespace}:losses", "MAXLEN", "~", _LOSSES_KEPT, "*",
         "from", before, "to", after, "ids", ",".join(ids[start : start + _IDS_PER_LOSS]))
        for start in range(0, len(ids), _IDS_PER_LOSS)
    ]  # fmt: skip


def losses(redis: RedisConnection, namespace: str) -> list[dict[str, str]]:
    """Return what failovers lost, oldest first: from, to, ids."""
    try:
        found = redis.call("XRANGE", f"{namespace}:losses", "-", "+")
    except RedisRefused:
        return []
    records = [
        {k.decode(errors="replace"): v.decode(errors="replace")
         for k, v in zip(f[::2], f[1::2], strict=True)}
        for _, f in found
    ]  # fmt: skip
    return [each for each in records if each.keys() >= {"from", "to", "ids"}]


def lost_since(redis: RedisConnection, namespace: str, entry_id: str) -> dict[str, str]:
    """Return the ids of transactions recorded as lost after an entry of another stream.

    Each has the entry id of its record. Raises RedisUnavailable and RedisRefused.
    """
    found = redis.call("XRANGE", f"{namespace}:losses", f"({entry_id}", "+")
    return {
        each: loss_id.decode()
        for loss_id, fields in found
        for each in dict(zip(fields[::2], fields[1::2], strict=True))
        .get(b"ids", b"").decode(errors="replace").split(",")
    }  # fmt: skip
