"""How far replicas are: what is asked of PostgreSQL, and what is told in Redis for everybody.

======================= ========= ==================================================================
<ns>:replicas           hash      replica -> how it stands, as JSON (`Replica`)
<ns>:servers            hash      replica -> which server the name stands for now, and when that was
                                  told (`Meant`)
<ns>:{<lane>}:replayed  hash      replica -> position up to which it has the commits of this lane,
                                  and the server that showed them
<ns>:replayed           stream    one entry each time a replica got further, bounded; what waiters
                                  read: replica, position, lanes
<ns>:primary            string    system identifier and timeline of the primary written to last
<ns>:losses             stream    commits that a failover left behind, bounded: from, to, ids
======================= ========= ==================================================================

A position told for a lane is exact for this lane, across promotions (see `marks`). It counts only
while the name stands for the server that showed it: a name may be given to another server, and a
server that is started anew may be an older copy, or show less than it did.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection
from processor.connections.sql_literals import quoted
from processor.connections.wal_position import Position, written
from processor.errors import RedisRefused
from processor.telemetry.status import Replica as Replica

#: `WAIT FOR LSN`: from this version on a standby says itself when it has replayed a position.
WAITS = 190000

_WHOLE = re.compile("[0-9]+").fullmatch
_KEPT = 1_000
_LOSSES = 1_000
_IDS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Meant:
    """Which server the name of a replica stands for, as was told at a time (Unix seconds)."""

    server: str
    told: float


# Told to Redis.


def tell(namespace: str, name: str, replica: Replica) -> Command:
    """Let everybody know how a replica stands."""
    return ("HSET", f"{namespace}:replicas", name, msgspec.json.encode(replica))


def mean(namespace: str, name: str, server: str, at: float) -> Command:
    """Let everybody know which server a name stands for."""
    return ("HSET", f"{namespace}:servers", name, f"{server} {at!r}")


def take_back(namespace: str, name: str, lanes: Sequence[Lane]) -> list[Command]:
    """Let nobody believe what was told of the server that had a name before.

    In no lane, also while Redis is full and takes no other word; of these lanes for ever.
    """
    return [
        ("HDEL", f"{namespace}:servers", name),
        *(("HDEL", lane.replayed, name) for lane in lanes),
        _ring(namespace, name),
    ]


def confirm(
    namespace: str, name: str, server: str, position: Position, lanes: Sequence[Lane], at: float
) -> list[Command]:
    """Let everybody know that a replica has these lanes' commits up to a position."""
    told = str(position)
    names = ",".join(lane.name for lane in lanes)
    return [
        *(("HSET", lane.replayed, name, f"{told} {server}") for lane in lanes),
        _ring(namespace, name, "position", told, "lanes", names, "at", repr(at)),
    ]


def _ring(namespace: str, name: str, *words: str) -> Command:
    return ("XADD", f"{namespace}:replayed", "MAXLEN", "~", _KEPT, "*", "replica", name, *words)


def known(redis: RedisConnection, namespace: str) -> dict[str, Replica]:
    """All replicas of which anything was ever told. Raises RedisUnavailable and RedisRefused."""
    return replicas(redis.call("HGETALL", f"{namespace}:replicas"))


def replicas(reply: Any) -> dict[str, Replica]:
    """The reply to HGETALL of `<ns>:replicas`."""
    found = {}
    for name, told in zip(reply[::2], reply[1::2], strict=True):
        with contextlib.suppress(msgspec.MsgspecError):
            found[name.decode(errors="replace")] = msgspec.json.decode(told, type=Replica)
    return found


def named(redis: RedisConnection, namespace: str) -> dict[str, Meant]:
    """The servers that names stand for. Raises RedisUnavailable and RedisRefused."""
    return meant(redis.call("HGETALL", f"{namespace}:servers"))


def meant(reply: Any) -> dict[str, Meant]:
    """The reply to HGETALL of `<ns>:servers`."""
    found = {}
    for name, (server, at) in _words(reply):
        with contextlib.suppress(ValueError):
            found[name] = Meant(server, float(at))
    return found


def positions(reply: Any, servers: Mapping[str, Meant]) -> dict[str, Position]:
    """The reply to HGETALL of a lane's `:replayed`: what is told of the servers of now."""
    found = {}
    for name, (told, server) in _words(reply):
        with contextlib.suppress(ValueError):
            if name in servers and servers[name].server == server:
                found[name] = Position.parse(told)
    return found


def _words(reply: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, told in zip(reply[::2], reply[1::2], strict=True):
        first, _, second = told.decode(errors="replace").partition(" ")
        yield name.decode(errors="replace"), (first, second)


def primary(redis: RedisConnection, namespace: str) -> tuple[str, int] | None:
    """System identifier and timeline of the primary that was written to last."""
    return written_to(redis.call("GET", f"{namespace}:primary"))


def written_to(reply: Any) -> tuple[str, int] | None:
    """The reply to GET of `<ns>:primary`."""
    system, separator, timeline = (reply or b"").decode(errors="replace").partition("/")
    return (system, int(timeline)) if separator and _WHOLE(timeline) else None


def now_primary(namespace: str, system: str, timeline: int) -> Command:
    """Let everybody know to which primary is written."""
    return ("SET", f"{namespace}:primary", f"{system}/{timeline}")


def lost(namespace: str, before: str, after: str, ids: Sequence[str]) -> list[Command]:
    """Keep the ids of commits that a failover left behind."""
    return [
        ("XADD", f"{namespace}:losses", "MAXLEN", "~", _LOSSES, "*", "from", before, "to", after,
         "ids", ",".join(ids[start : start + _IDS_AT_ONCE]))
        for start in range(0, len(ids), _IDS_AT_ONCE)
    ]  # fmt: skip


def losses(redis: RedisConnection, namespace: str) -> list[dict[str, str]]:
    """What failovers left behind, oldest first: from, to, ids."""
    try:
        found = redis.call("XRANGE", f"{namespace}:losses", "-", "+")
    except RedisRefused:
        return []
    return [
        {k.decode(): v.decode(errors="replace") for k, v in zip(f[::2], f[1::2], strict=True)}
        for _, f in found
    ]


def left_behind(redis: RedisConnection, namespace: str, since: str) -> dict[str, str]:
    """The ids of what failovers left behind after an entry of a stream, with where it was told.

    Raises RedisUnavailable and RedisRefused.
    """
    found = redis.call("XRANGE", f"{namespace}:losses", f"({since}", "+")
    return {
        each: entry_id.decode()
        for entry_id, fields in found
        for each in dict(zip(fields[::2], fields[1::2], strict=True))
        .get(b"ids", b"").decode(errors="replace").split(",")
    }  # fmt: skip


# Asked of PostgreSQL.


def ask(tokens: Iterable[str]) -> str:
    """Ask a replica what it has replayed, which server it is, which rows of these lanes it shows.

    The system identifier is that of all replicas; but an older copy in its place was started later.
    """
    wanted = ",".join(tokens)
    return (
        "SELECT pg_last_wal_replay_lsn()::text,"
        " extract(epoch FROM pg_postmaster_start_time())::text,"
        " (SELECT jsonb_object_agg(token, xmin::text)"
        f" FROM processor.lane WHERE token = ANY ('{{{wanted}}}'::uuid[]))"
    )


def rows(shown: Mapping[str, str] | None) -> list[tuple[str, int]]:
    """Tokens and transaction ids of the answer to `ask`."""
    return [(token, int(xmin)) for token, xmin in (shown or {}).items()]


#: Ask the primary how far those are that stream from it. Their positions are on its own timeline.
#: Which server each is, it knows by the connection: a new one may be that of an older copy.
#: A role without pg_monitor sees that there are some, and nothing of them. Subscribers to some of
#: its tables stream as well, and are no replicas.
ASK_PRIMARY = (
    "SELECT application_name, min(replay_lsn)::text,"
    " extract(epoch FROM max(backend_start))::text,"
    " left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
    " FROM pg_stat_replication r WHERE NOT EXISTS (SELECT FROM pg_replication_slots s"
    " WHERE s.active_pid = r.pid AND s.slot_type = 'logical') GROUP BY application_name"
)


def wait(position: Position, seconds: float) -> str:
    """Wait on a standby until it has replayed a position, for so long at most (PostgreSQL 19).

    The answer says nothing of timelines, so it only tells when to ask.
    """
    lsn = quoted(written(position.lsn))
    return f"WAIT FOR LSN {lsn} WITH (TIMEOUT '{max(1, int(seconds * 1000))}ms', NO_THROW)"
