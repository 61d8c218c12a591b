"""What a buffer holds at one moment, as people see it: on the pages, in metrics, in `status`.

They all show the record of this module, so that they never disagree. It comes from Redis alone and
is available while PostgreSQL is not. What the drain needs between batches it measures itself, in
`drain.backlog`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from processor.buffer import lane_size, parked, registry
from processor.buffer.lane import Lane
from processor.buffer.lane_size import LaneSize
from processor.config.settings import Settings
from processor.connections.redis_client import Command, RedisConnection, Reply, checked

#: Parked records of a lane that one look reads, and the bytes that it should not exceed.
_PAGE, _PAGE_BYTES = 200, 200_000
#: So many of the oldest parked entries of a lane are remembered.
_REMEMBERED = 32
#: Pages that a single, complete look reads of a lane.
_MOST_PAGES = 50


@dataclass(frozen=True, slots=True)
class BufferObservation:
    """A buffer at the time `now`, in Unix seconds by the clock of Redis.

    `identity` is None if nothing was ever submitted. `paused` maps each paused queue to the end of
    its pause, in Unix seconds; 0 means until it is resumed.
    """

    identity: str | None
    now: float
    lanes: Mapping[str, LaneSize]
    paused: Mapping[str, float]

    def queues(self) -> list[str]:
        """The names of all queues."""
        return sorted({queue_of(lane) for lane in self.lanes})


def observe(redis: RedisConnection, settings: Settings) -> BufferObservation:
    """Observe a buffer once; writes nothing. Raises RedisUnavailable and RedisRefused."""
    return _observe(redis, settings, lane_names(redis, settings))


def lane_names(redis: RedisConnection, settings: Settings) -> list[str]:
    """The lanes of the configuration, and those that were ever written (rule 7)."""
    configured = {
        f"{name}:{number}"
        for name, queue in settings.queues.items()
        for number in range(queue.partitions)
    }
    registered = registry.registered(redis, settings.namespace, settings.queues)
    return sorted(configured | set(registered))


def queue_of(lane: str) -> str:
    """The queue of which a lane is a partition."""
    return lane.rpartition(":")[0]


def _observe(
    redis: RedisConnection, settings: Settings, names: Sequence[str]
) -> BufferObservation:
    lanes = [Lane(settings.namespace, name) for name in names]
    replies = redis.read(lane_size.measure(settings.namespace, lanes))
    paused, sizes = lane_size.measured(lanes, replies)
    until = registry.pause_ends(replies[1])
    return BufferObservation(
        registry.written_identity(redis, settings.namespace),
        int(replies[0][0]) + int(replies[0][1]) / 1e6,
        dict(zip(names, sizes, strict=True)),
        {queue: until.get(queue, 0.0) for queue in sorted(paused)},
    )


@dataclass(slots=True)
class _OldestParked:
    """The oldest parked entries of one lane, found page by page.

    `known` maps transactions to their accept time in milliseconds. Redis has no order of parked
    entries by age, so a look reads one page of them and asks which of the known ones are left. With
    more than a page of them the first answers may be too young.
    """

    lane: Lane
    known: dict[str, int] = field(default_factory=dict)
    after: int = 0
    count: int = _PAGE

    def commands(self) -> list[Command]:
        """Ask for the next page, and which of the known entries are still parked."""
        there: list[Command] = [("HEXISTS", self.lane.parked, i) for i in self.known]
        return [*there, ("HSCAN", self.lane.parked, self.after, "COUNT", self.count)]

    def learn(self, replies: Sequence[Reply]) -> None:
        """Take in the replies to `commands`."""
        *there, (after, pairs) = replies
        known = {i: at for (i, at), has in zip(self.known.items(), there, strict=True) if has}
        for name, record in zip(pairs[::2], pairs[1::2], strict=True):
            if (accepted := parked.accepted_at(record)) is not None:
                known[name.decode(errors="replace")] = accepted
        self.known = dict(sorted(known.items(), key=lambda item: item[1])[:_REMEMBERED])
        self.after = int(after)
        read = sum(map(len, pairs)) // max(1, len(pairs) // 2)
        self.count = max(1, min(_PAGE, _PAGE_BYTES // max(1, read)))

    def age(self, now: float) -> float | None:
        """The age of the oldest one at `now` (Unix seconds), None if none is known."""
        return max(0.0, now - min(self.known.values()) / 1000) if self.known else None


class BufferObserver:
    """Observes a buffer again and again, in few commands for each lane."""

    def __init__(self, settings: Settings, queues: Collection[str] = ()) -> None:
        """`queues`: observe only the lanes of these (default: all)."""
        self._settings = settings
        self._queues = queues
        self._oldest: dict[str, _OldestParked] = {}

    def observe(self, redis: RedisConnection, *, complete: bool = False) -> BufferObservation:
        """Observe the buffer now, with the ages of what is parked; writes nothing.

        `complete` reads up to 10,000 parked entries of each lane for that, otherwise 200. Raises
        RedisUnavailable and RedisRefused.
        """
        names = lane_names(redis, self._settings)
        if self._queues:
            names = [name for name in names if queue_of(name) in self._queues]
        seen = _observe(redis, self._settings, names)
        having = [name for name, size in seen.lanes.items() if size.parked]
        self._oldest = {
            name: self._oldest.get(name) or _OldestParked(Lane(self._settings.namespace, name))
            for name in having
        }
        for _ in range(_MOST_PAGES if complete else 1):
            self._look(redis)
            if not any(oldest.after for oldest in self._oldest.values()):
                break
        lanes = dict(seen.lanes)
        for name, oldest in self._oldest.items():
            lanes[name] = replace(lanes[name], parked_oldest_age=oldest.age(seen.now))
        return replace(seen, lanes=lanes)

    def _look(self, redis: RedisConnection) -> None:
        asked = [(oldest, oldest.commands()) for oldest in self._oldest.values()]
        commands = [command for _, each in asked for command in each]
        replies = iter(checked(redis.read(commands)) if commands else [])
        for oldest, each in asked:
            oldest.learn([next(replies) for _ in each])
