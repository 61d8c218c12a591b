"""How full a part of the buffer is: a stream, a schedule or the overlay.

Every write asks for the depth of the parts that it adds to, so that the next write knows it. Each
concurrent write may exceed `buffer.limit` by its own transactions.
"""

from __future__ import annotations

import sys

from processor.buffer.lane import Lane
from processor.connections.redis_client import pack


class Room:
    """A part of the buffer: the command that returns its depth, and the depth last returned."""

    __slots__ = ("depth", "packed", "query", "what")

    def __init__(self, what: str, query: tuple[str, str]) -> None:
        self.what = what
        self.query = query
        self.packed = pack(query)
        #: Unknown before the first write: asked for, as at the limit.
        self.depth = sys.maxsize


class LaneRoom:
    """The parts of a lane: delayed transactions are counted apart from those in the stream."""

    __slots__ = ("lane", "scheduled", "stream")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.stream = Room(f"lane {lane.name}", ("XLEN", lane.stream))
        self.scheduled = Room(f"lane {lane.name}", ("ZCARD", lane.scheduled))
