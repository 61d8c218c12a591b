"""The number of partitions of a queue, which changes only while the queue is empty (rule 7).

A key chooses its lane by that number: with another one, what shares a key would lie in two lanes,
each of them an order of its own.
"""

from __future__ import annotations

from processor.buffer.lane import Lane
from processor.connections.redis_client import Command, RedisConnection, checked
from processor.errors import ConfigError


def agree(redis: RedisConnection, namespace: str, queue: str, partitions: int) -> None:
    """See that a queue is written to as many lanes as it was before, or is empty.

    Raises ConfigError, RedisUnavailable and RedisRefused.
    """
    key = f"{namespace}:partitions"
    redis.call("HSETNX", key, queue, partitions)
    known = int(redis.call("HGET", key, queue))
    if known == partitions:
        return
    lanes = [Lane(namespace, f"{queue}:{n}") for n in range(known)]
    asked: list[Command] = []
    for lane in lanes:
        asked += [("XLEN", lane.stream), ("ZCARD", lane.scheduled), ("HLEN", lane.parked)]
    counts = checked(redis.calls(asked))
    if any(counts):
        raise ConfigError(
            f"queues.{queue}.partitions: is {partitions}, and {sum(counts)} transactions lie in the"
            f" buffer by {known}",
            hint="change it only while the queue is empty, else what shares a key loses its order",
        )
    redis.call("HSET", key, queue, partitions)
