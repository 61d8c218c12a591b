"""Ids of stream entries, which Redis generates: their order, and what they say of a stream's past.

A lost or restored stream is recognized by it. Redis 7 and Valkey count the entries that were ever
added; Redis 6.2 knows only the last id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

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


class StreamHistory(msgspec.Struct, frozen=True):
    """The stream of a lane at one moment; all of it is empty if there is none.

    `first` is the id of the first of its `length` entries, `last` that of the last one that was
    ever added, `added` how many ever were (None: Redis 6.2).
    """

    first: str | None = None
    last: str = "0-0"
    added: int | None = 0
    length: int = 0

    @property
    def _removed(self) -> int | None:
        return None if self.added is None else self.added - self.length

    def continues(self, before: StreamHistory) -> bool:
        """Whether this can be the stream of `before` at a later moment: nothing went back."""
        if order(self.last) < order(before.last):
            return False
        if self.added is None or before.added is None:
            return True
        assert self._removed is not None
        assert before._removed is not None
        if self.added < before.added:
            return False
        # Fewer were removed: another stream with as many entries, unless old entries are back
        # because a crash of Redis undid their removal.
        is_back = self.first is not None and order(self.first) <= order(before.last)
        return self._removed >= before._removed or is_back

    def encoded(self) -> str:
        """Return it as text, which `decoded` reads."""
        return msgspec.json.encode(self).decode()


def decoded(text: str | None) -> StreamHistory | None:
    """Return what `encoded` wrote; None if there is nothing, or something else."""
    try:
        return None if text is None else msgspec.json.decode(text, type=StreamHistory)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def histories(
    redis: RedisConnection, lanes: Sequence[Lane]
) -> tuple[list[StreamHistory], int]:
    """Return the history of each lane, and the time of Redis (ms), in one round trip.

    Raises RedisUnavailable and RedisRefused.
    """
    # The reply contains the first and the last entry, which may be too large.
    now, *replies = redis.read([
        ("TIME",), *(("XINFO", "STREAM", lane.stream) for lane in lanes)
    ])  # fmt: skip
    if isinstance(now, RedisRefused):
        raise now
    return [_history(reply) for reply in replies], int(now[0]) * 1000 + int(now[1]) // 1000


def last_generated(redis: RedisConnection, lane: Lane) -> str:
    """Return the last entry id that Redis generated for a lane; every later entry has a higher one.

    "0-0" if the lane has no stream. Raises RedisUnavailable and RedisRefused.
    """
    return histories(redis, [lane])[0][0].last


def _history(reply: Any) -> StreamHistory:
    if isinstance(reply, RedisRefused):
        if reply.code == "ERR":  # No such key: the stream was never written, or is lost.
            return StreamHistory()
        raise reply
    found = dict(zip(reply[::2], reply[1::2], strict=True))
    first = found[b"first-entry"]
    return StreamHistory(
        first[0].decode() if first else None, found[b"last-generated-id"].decode(),
        found.get(b"entries-added"), found[b"length"],
    )  # fmt: skip
