"""What Redis says of itself, and the states that the processors of a buffer published there.

The lanes and pauses of a buffer are observed by `buffer.observation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from processor.buffer.lane_size import LaneSize
from processor.buffer.registry import is_lane_name
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused
from processor.telemetry.status import RECORD, LaneState, rounded

_SCANNED = 1000
_TIME = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z$"
#: The status in place of a record that is no state.
DAMAGED = "damaged"
#: The status in place of a state that only a later release reads.
LATER = "of a later release"

#: The state of one processor as it published it: the dict of `telemetry.status.as_mapping`.
PublishedState = Mapping[str, Any]


def clock(redis: RedisConnection) -> float:
    """The time by the clock of Redis, in Unix seconds."""
    whole, micro = redis.call("TIME")
    return int(whole) + int(micro) / 1e6


def is_full(redis: RedisConnection) -> bool:
    """Whether Redis has reached its memory limit; False if our user may not ask."""
    (reply,) = redis.calls([("INFO", "memory")])
    if isinstance(reply, RedisRefused):
        return False
    figures = dict(row.split(":", 1) for row in reply.decode().splitlines() if ":" in row)
    limit = int(figures.get("maxmemory", 0))
    return 0 < limit <= int(figures.get("used_memory", 0))


def size_mapping(size: LaneSize) -> dict[str, Any]:
    """The fields of a lane's size that JSON output shows."""
    return {
        "depth": size.depth,
        "scheduled": size.scheduled,
        "parked": size.parked,
        "oldest_age": rounded(size.oldest_age),
        "parked_oldest_age": rounded(size.parked_oldest_age),
    }


def processors(redis: RedisConnection, settings: Settings) -> list[PublishedState]:
    """The latest state of each processor of this buffer. A state expires when it is not renewed."""
    pattern = f"{settings.namespace}:state:*"
    found: set[bytes] = set()
    cursor: Any = b"0"
    while True:
        cursor, keys = redis.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)
        found.update(keys)
        if cursor in (b"0", 0):
            break
    keys = sorted(found)
    replies = redis.calls([("GET", key) for key in keys]) if keys else []
    states = [_published(key.decode(errors="replace")[len(pattern) - 1 :], reply)
              for key, reply in zip(keys, replies, strict=True) if reply is not None]  # fmt: skip
    return sorted(states, key=lambda state: str(state["instance"]))


class _Versioned(msgspec.Struct):
    record: int = 1


class _Processor(msgspec.Struct):
    status: str = ""
    reason: str = ""
    last_run: Annotated[str, msgspec.Meta(pattern=_TIME)] | None = None
    transactions_processed: int = 0
    already_applied: int = 0
    retried: int = 0
    dead: int = 0
    dead_letters: int = 0
    dead_letters_counted: Annotated[str, msgspec.Meta(pattern=_TIME)] | None = None
    loss: str = ""


class _State(msgspec.Struct):
    instance: str
    background_processor: _Processor
    lanes: dict[str, LaneState] = {}
    site: str = ""
    version: str = ""


def _published(name: str, reply: Any) -> PublishedState:
    """The state in a record. Fields that a later release added to it are kept.

    A record of a later version is named, and says nothing. Another program may have written one
    that is no state.
    """
    try:
        if msgspec.json.decode(reply, type=_Versioned).record > RECORD:
            later = _Processor(LATER, "its record in Redis has a version of a later release")
            return dict(msgspec.to_builtins(_State(name, later)))
        checked = msgspec.to_builtins(msgspec.json.decode(reply, type=_State))
        checked["lanes"] = {n: each for n, each in checked["lanes"].items() if is_lane_name(n)}
        found = msgspec.json.decode(reply)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        broken = _Processor(DAMAGED, "its record in Redis is no state of a processor: ignored")
        return dict(msgspec.to_builtins(_State(name, broken)))
    for part in ("background_processor", "lanes"):
        more = found.get(part) or {}
        checked[part] = {**more, **checked[part]} if part != "lanes" else {
            lane: {**more[lane], **each} for lane, each in checked[part].items()
        }  # fmt: skip
    return {**found, **checked}
