"""The number of partitions of a queue, which changes only while the queue is empty (rule 7).

The number decides the lane of a key. If it changed earlier, transactions that share a key would be
in two lanes, and lanes have no order between them.
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
    before = int(redis.call("HGET", key, queue))
    if before == partitions:
        return
    lanes = [Lane(namespace, f"{queue}:{n}") for n in range(before)]
    asked: list[Command] = []
    for lane in lanes:
        asked += [("XLEN", lane.stream), ("ZCARD", lane.scheduled), ("HLEN", lane.parked)]
    counts = checked(redis.calls(asked))
    if any(counts):
        raise ConfigError(
            f"queues.{queue}.partitions: cannot change from {before} to {partitions} while"
            f" {sum(counts)} transactions are in the buffer",
            hint="wait until the queue is empty, or transactions that share a key lose their order",
        )
    redis.call("HSET", key, queue, partitions)
