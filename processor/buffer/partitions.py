"""The number of partitions of a queue, which changes only while the queue is empty (rule 7).

The number decides the lane of a key. If it changed earlier, transactions that share a key would be
in two lanes, and lanes have no order between them. A key that a dead letter holds would be free in
its new lane.
"""

from __future__ import annotations

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import ConfigError, RedisRefused

#: What another program wrote may be any number, and each partition costs several commands.
_MOST = 1024


def agree(redis: RedisConnection, namespace: str, queue: str, partitions: int) -> None:
    """Check that a queue has as many lanes as before, or is empty; then the number is changed.

    Raises ConfigError, RedisUnavailable and RedisRefused.
    """
    redis.call("HSETNX", f"{namespace}:partitions", queue, partitions)
    while (before := _written(redis, namespace, queue) or partitions) != partitions:
        try:
            changed = _change(redis, namespace, queue, before, partitions)
        except RedisRefused as refused:
            if refused.code != "NOPERM":
                raise
            raise ConfigError(
                f"queues.{queue}.partitions: the buffer has {before} and the settings {partitions},"
                " and this user of Redis may not change it",
                hint="submit once as the user of the processor, or use the number of the buffer",
            ) from None
        if changed:
            return


def _written(redis: RedisConnection, namespace: str, queue: str) -> int:
    """Return the number that the buffer has for a queue, 0 if none.

    Raises ConfigError if it cannot be one: with another number keys would lose their order.
    """
    found = redis.call("HGET", f"{namespace}:partitions", queue)
    if found is None:
        return 0
    if not (found.isdigit() and len(found) <= 5 and 0 < int(found) <= _MOST):
        raise ConfigError(
            f"queues.{queue}.partitions: what the buffer has is no number of partitions",
            hint=f"another program wrote it: set the field {queue} of {namespace}:partitions to"
            " the number that was used so far",
        )
    return int(found)


def _change(
    redis: RedisConnection, namespace: str, queue: str, before: int, partitions: int
) -> bool:
    """Change the number; False if a producer wrote or changed something meanwhile.

    A producer watches the number, and here the lanes are watched, so that of a write and a change
    at the same time only one is carried out.
    """
    key = f"{namespace}:partitions"
    lanes = [Lane(namespace, f"{queue}:{n}") for n in range(before)]
    watched: list[str] = []
    counting: list[Command] = []
    held: list[Command] = []
    for lane in lanes:
        watched += [lane.stream, lane.scheduled, lane.parked, lane.blocked]
        counting += [("XLEN", lane.stream), ("ZCARD", lane.scheduled), ("HLEN", lane.parked)]
        held.append(("ZCARD", lane.blocked))
    asked: list[Command] = [("WATCH", key, *watched), ("HGET", key, queue), *counting, *held]
    _, still, *counts = checked(redis.calls(asked))
    if any(counts):
        _unwatch(redis)
        entries = sum(counts[: len(counting)])
        raise ConfigError(
            f"queues.{queue}.partitions: cannot change from {before} to {partitions} while "
            + (f"{entries} transactions are in the buffer" if entries
               else f"dead letters hold {sum(counts)} keys"),
            hint="wait until the queue is empty, or transactions that share a key lose their order"
            if entries else "retry or discard them: see `processor dead list`",
        )  # fmt: skip
    if still != b"%d" % before:
        _unwatch(redis)
        return False
    replies = redis.calls([("MULTI",), ("HSET", key, queue, partitions), ("EXEC",)])
    return checked(replies)[-1] is not None


def _unwatch(redis: RedisConnection) -> None:
    # One command less for the users with least privilege.
    redis.calls([("MULTI",), ("EXEC",)])
