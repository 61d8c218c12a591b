"""The number of partitions of a queue, which changes only while the queue is empty (rule 7).

The number decides the lane of a key. If it changed earlier, transactions that share a key would be
in two lanes, and lanes have no order between them. A key that a dead letter holds would be free in
its new lane.
"""

from __future__ import annotations

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import ConfigError


def agree(redis: RedisConnection, namespace: str, queue: str, partitions: int) -> None:
    """Check that a queue has as many lanes as before, or is empty; then the number is changed.

    Raises ConfigError, RedisUnavailable and RedisRefused.
    """
    key = f"{namespace}:partitions"
    redis.call("HSETNX", key, queue, partitions)
    while int(redis.call("HGET", key, queue) or partitions) != partitions:
        if _change(redis, namespace, queue, partitions):
            return


def _change(redis: RedisConnection, namespace: str, queue: str, partitions: int) -> bool:
    """Change the number; False if a producer wrote or changed something meanwhile.

    A producer watches the number, and here the lanes are watched, so that of a write and a change
    at the same time only one is carried out.
    """
    key = f"{namespace}:partitions"
    before = int(redis.call("HGET", key, queue) or 0)
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
    if still is None or int(still) != before:
        _unwatch(redis)
        return False
    replies = redis.calls([("MULTI",), ("HSET", key, queue, partitions), ("EXEC",)])
    return checked(replies)[-1] is not None


def _unwatch(redis: RedisConnection) -> None:
    # One command less for the users with least privilege.
    redis.calls([("MULTI",), ("EXEC",)])
