"""The buffer: one site's Redis with all its lanes, as commands and what their replies mean.

Producers add through it, the drain reads and settles through it. Every key begins with the
namespace; those of a lane carry its hash tag, so that a lane lives on one node of a cluster.

============================== ======== ===========================================================
<ns>:buffer                    string   identity of this buffer, random, written once (rule 1)
<ns>:lanes                     set      every lane ever written (rule 7)
<ns>:partitions                hash     queue -> number of lanes it is written to (rule 7)
<ns>:paused                    hash     queue -> until when it is paused, Unix seconds, 0 for ever
<ns>:resumed                   hash     lane -> count; an operator lifted a systemic pause
<ns>:state:<instance>          string   state of a processor as JSON, expiring
<ns>:{<lane>}:stream           stream   entries: v (envelope version), tx (the transaction)
<ns>:{<lane>}:scheduled        zset     delayed transactions by due time (`due`)
<ns>:{<lane>}:parked           hash     id -> entry held back or to be retried (`parked`)
<ns>:{<lane>}:blocked          zset     lines of the blocked keys, in order (`parked`)
<ns>:{<lane>}:retry            zset     id -> when it is to be applied from parked (`parked`)
<ns>:{<lane>}:commits          stream   one note a committed batch, bounded; what receipts wait on
<ns>:{<lane>}:pruned           string   accept time (ms) up to which the ledger forgot (rule 23)
<ns>:{<lane>}:replayed         hash     replica -> how far it has this lane (`replication`)
============================== ======== ===========================================================

Keys of replicas are those of `replication`, keys of pending writes those of `overlay`.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor.connections.redis_client import Command, RedisConnection
from processor.errors import InvalidTransaction, RedisRefused
from processor.transaction.builder import Encoded
from processor.transaction.entry import VERSION
from processor.transaction.ids import canonical_id, id_of_key

#: A stream entry as it was read: its id, envelope version and body, either absent if malformed.
Raw = tuple[str, bytes | None, bytes | None, bytes]


_PARTS = (
    "stream", "scheduled", "parked", "blocked", "retry", "commits", "pruned", "replayed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lane:
    """The names of one lane's keys."""

    namespace: str
    name: str
    stream: str = field(init=False)
    scheduled: str = field(init=False)
    parked: str = field(init=False)
    blocked: str = field(init=False)
    retry: str = field(init=False)
    commits: str = field(init=False)
    pruned: str = field(init=False)
    replayed: str = field(init=False)

    def __post_init__(self) -> None:
        for part in _PARTS:
            object.__setattr__(self, part, f"{self.namespace}:{{{self.name}}}:{part}")

    @property
    def queue(self) -> str:
        """The queue of which this lane is a partition."""
        return self.name.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Look:
    """How full a lane is: entries, the age of the oldest in seconds, when more is due (Unix)."""

    depth: int
    scheduled: int
    parked: int
    lines: int
    oldest_age: float | None
    oldest: str | None
    next_due: float | None
    next_retry: float | None


def lane_name(queue: str, partitions: int, encoded: Encoded) -> str:
    """The lane of a transaction: its first key chooses the partition, else its id (rule 24)."""
    if partitions == 1:
        return f"{queue}:0"
    chooser = encoded.keys[0] if encoded.keys else encoded.id
    return f"{queue}:{zlib.crc32(chooser.encode()) % partitions}"


def add(lane: Lane, body: bytes) -> Command:
    """Add a transaction to the end of its lane."""
    return ("XADD", lane.stream, "*", "v", VERSION, "tx", body)


def identity(redis: RedisConnection, namespace: str) -> str:
    """The identity of this buffer; written by whoever asks first (rule 1)."""
    while (found := written_identity(redis, namespace)) is None:
        redis.call("SET", f"{namespace}:buffer", str(uuid.uuid4()), "NX")
    return found


def written_identity(redis: RedisConnection, namespace: str) -> str | None:
    """The identity of this buffer, if somebody wrote one; for whoever only looks."""
    key = f"{namespace}:buffer"
    found = redis.call("GET", key)
    if found is None:
        return None
    text = found.decode(errors="replace")
    try:
        return canonical_id(key, text)
    except InvalidTransaction:
        # Put there by somebody else: no reason to stop, and an identity for all who read it.
        return id_of_key(f"buffer {text}")


def register(namespace: str, lanes: Iterable[str]) -> Command:
    """Put lanes on the register, so that every processor drains them (rule 7)."""
    return ("SADD", f"{namespace}:lanes", *lanes)


def registered(redis: RedisConnection, namespace: str) -> list[str]:
    """All lanes ever written, sorted."""
    return sorted(name.decode() for name in redis.call("SMEMBERS", f"{namespace}:lanes"))


def read(lane: Lane, cursor: str, count: int) -> Command:
    """Read entries after the cursor; "-" reads from the head."""
    start = cursor if cursor == "-" else f"({cursor}"
    return ("XRANGE", lane.stream, start, "+", "COUNT", count)


def entries(reply: Any) -> list[Raw]:
    """The entries of a reply to `read`."""
    found: list[Raw] = []
    for entry_id, fields in reply:
        if len(fields) == 4 and fields[0] == b"v" and fields[2] == b"tx":
            found.append((entry_id.decode(), fields[1], fields[3], fields[3]))
        else:
            found.append(_odd(entry_id.decode(), fields))
    return found


def _odd(entry_id: str, fields: Sequence[bytes]) -> Raw:
    # Written by somebody else: kept as it is, so that the dead letter shows all of it.
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    whole = b"\n".join(k + b"=" + v for k, v in zip(fields[::2], fields[1::2], strict=False))
    if len(named) * 2 != len(fields):
        return entry_id, None, None, whole
    return entry_id, named.get(b"v"), named.get(b"tx"), whole


def settle(lane: Lane, entry_ids: Sequence[str]) -> Command:
    """Remove entries whose outcome is committed (rule 20)."""
    return ("XDEL", lane.stream, *entry_ids)


_ASKED = 7


def look(namespace: str, lanes: Sequence[Lane]) -> list[Command]:
    """Ask how full the lanes are and what is next in each; `looked` reads the replies."""
    commands: list[Command] = [("TIME",), ("HGETALL", f"{namespace}:paused")]
    for lane in lanes:
        commands += [
            ("XLEN", lane.stream),
            ("XRANGE", lane.stream, "-", "+", "COUNT", 1),
            ("ZCARD", lane.scheduled),
            ("HLEN", lane.parked),
            ("ZCARD", lane.blocked),
            ("ZRANGE", lane.scheduled, 0, 0, "WITHSCORES"),
            ("ZRANGE", lane.retry, 0, 0, "WITHSCORES"),
        ]
    return commands


def looked(lanes: Sequence[Lane], replies: Sequence[Any]) -> tuple[set[str], list[Look]]:
    """The replies to `look`: the queues that are paused, and a Look for each lane."""
    for reply in replies:
        if isinstance(reply, RedisRefused):
            raise reply
    now = int(replies[0][0]) + int(replies[0][1]) / 1e6
    looks = []
    for number in range(len(lanes)):
        start = 2 + _ASKED * number
        depth, head, scheduled, parked, lines, due, retry = replies[start : start + _ASKED]
        oldest = head[0][0].decode() if head else None
        age = max(0.0, now - int(oldest.split("-")[0]) / 1000) if oldest else None
        looks.append(Look(depth, scheduled, parked, lines, age, oldest, _score(due), _score(retry)))
    return paused(replies[1], now), looks


def _score(reply: list[bytes]) -> float | None:
    return float(reply[1]) if reply else None


def paused(reply: Any, now: float) -> set[str]:
    """Queues that are paused at `now` (Unix seconds), from the reply to HGETALL <ns>:paused."""
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return {q.decode() for q, until in pairs if float(until) == 0 or float(until) > now}
