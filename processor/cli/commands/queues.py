"""`processor queues`: how full the lanes are, and the switch that holds a queue back.

A pause is a field of the hash <ns>:paused that every drain reads, so it holds for all processors of
the buffer and costs a submit nothing. One with an end lifts itself.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click

from processor.admin import overview
from processor.admin.overview import Overview
from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.cli.group import Group
from processor.cli.options import length
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import RedisRefused
from processor.telemetry.status import timestamp


@click.group(cls=Group)
def queues() -> None:
    """List, pause and resume queues."""


@queues.command("list")
@output.json_option
@with_servers
def list_(servers: OperatorSessions, as_json: bool) -> None:
    """Show every lane: its entries, what waits, and whether its queue is paused."""
    with servers.redis() as redis:
        seen = overview.look(redis, servers.settings)
    rows = [_row(servers.settings, seen, lane) for lane in seen.lanes]
    if as_json:
        for row in rows:
            output.record(row)
        return
    output.table(
        ("lane", "weight", "entries", "scheduled", "parked", "oldest", "paused"),
        [(r["lane"], r["weight"], r["depth"], r["scheduled"], r["parked"],
          output.seconds(r["oldest_age"]), _until(r)) for r in rows],
    )


@queues.command()
@click.argument("queue")
@click.option("--for", "time", metavar="TIME", callback=length,
              help="End by itself after 90, 15m, 2h ...")
@with_servers
def pause(servers: OperatorSessions, queue: str, time: float | None) -> None:
    """Hold a queue back: it takes entries, and none is applied."""
    with servers.redis() as redis:
        seen = overview.look(redis, servers.settings)
        _lanes_of(seen, queue)
        until = 0.0 if time is None else seen.now + time
        _put_pause(redis, f"{servers.settings.namespace}:paused", queue, until)
    end = f"until {timestamp(until)}" if until else f"until `processor queues resume {queue}`"
    output.message(f"{queue} is paused {end}")


def _put_pause(redis: RedisConnection, key: str, queue: str, until: float) -> None:
    try:
        redis.call("HSET", key, queue, repr(until))
    except RedisRefused as refused:
        if refused.code != "OOM":
            raise
        raise RedisRefused(
            "OOM", f"{queue} is not paused: Redis has reached its memory limit",
            hint="give it more memory, or wait until it is drained, and pause again",
        ) from None


@queues.command()
@click.argument("queue")
@with_servers
def resume(servers: OperatorSessions, queue: str) -> None:
    """Let a queue go on, also one whose lane paused itself over failures of one kind."""
    namespace = servers.settings.namespace
    with servers.redis() as redis:
        lanes = _lanes_of(overview.look(redis, servers.settings), queue)
        redis.call("HDEL", f"{namespace}:paused", queue)
        lifts = [("HINCRBY", f"{namespace}:resumed", lane, 1) for lane in lanes]
        refused = [r for r in redis.calls(lifts) if isinstance(r, RedisRefused)]
    # A full Redis lets go of the pause, and takes nothing new.
    for each in refused:
        if each.code != "OOM":
            raise each
    output.message(f"{queue} goes on")
    if refused:
        output.message("Redis has reached its memory limit: a lane that paused itself over failures"
                       " tries again by itself, resume it when there is room")


def _lanes_of(seen: Overview, queue: str) -> list[str]:
    mine = [lane for lane in seen.lanes if overview.queue_of(lane) == queue]
    if not mine:
        names = seen.queues()
        near = get_close_matches(queue, names, 1)
        guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise click.BadParameter(f"no such queue ({guess})", param_hint=f"{queue[:60]!r}")
    return mine


def _row(settings: Settings, seen: Overview, lane: str) -> dict[str, Any]:
    queue, look = overview.queue_of(lane), seen.lanes[lane]
    configured = settings.queues.get(queue)
    until = seen.paused.get(queue)
    return {
        "lane": lane,
        "queue": queue,
        "configured": configured is not None,
        "weight": configured.weight if configured else 1,
        "depth": look.depth,
        "scheduled": look.scheduled,
        "parked": look.parked,
        "oldest_age": None if look.oldest_age is None else round(look.oldest_age, 3),
        "paused": until is not None,
        "paused_until": timestamp(until) if until else None,
    }


def _until(row: dict[str, Any]) -> str:
    if not row["paused"]:
        return "no"
    return f"until {row['paused_until']}" if row["paused_until"] else "until resumed"
