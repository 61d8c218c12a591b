"""Ids of stream entries, which Redis generates: their order, and the last one of a lane."""

from __future__ import annotations

from processor.buffer.lane import Lane
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused


def order(entry_id: str) -> tuple[int, int]:
    """Return the position of an entry in the order of its stream, for comparison."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def sortable(entry_id: str) -> bytes:
    """Return an entry id in fixed width, so that its bytes sort in the order of the stream."""
    return b"%016d-%020d" % order(entry_id)


def from_sortable(text: bytes) -> str:
    """Return the entry id from which `sortable` made a text. Raises ValueError."""
    milliseconds, sequence = text.split(b"-")
    return f"{int(milliseconds)}-{int(sequence)}"


def accept_time(stored: bytes | None) -> int:
    """Return the accept time (ms) that a key of a lane has; 0 if it has none, or no time."""
    valid = stored is not None and stored.isdigit() and len(stored) < 20
    return int(stored) if stored is not None and valid else 0


def last_generated(redis: RedisConnection, lane: Lane) -> str:
    """Return the last entry id that Redis generated for a lane; every later entry has a higher one.

    "0-0" if the lane has no stream. Raises RedisUnavailable and RedisRefused.
    """
    # The reply contains the first and the last entry, which may be too large.
    (reply,) = redis.read([("XINFO", "STREAM", lane.stream)])
    if isinstance(reply, RedisRefused):
        if reply.code == "ERR":  # No such key: the stream was never written, or is lost.
            return "0-0"
        raise reply
    pairs = dict(zip(reply[::2], reply[1::2], strict=True))
    return str(pairs[b"last-generated-id"].decode())
