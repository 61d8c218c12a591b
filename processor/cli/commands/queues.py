"""`processor queues`: list, pause and resume queues."""

from __future__ import annotations

from typing import Any

import click

from processor.admin import pauses
from processor.admin.overview import size_mapping
from processor.admin.pauses import NoSuchQueue, QueueLane
from processor.admin.sessions import OperatorSessions
from processor.admin.wording import seconds
from processor.cli import output
from processor.cli.group import Group
from processor.cli.options import duration, with_sessions
from processor.telemetry.status import timestamp


@click.group(cls=Group)
def queues() -> None:
    """List, pause and resume queues."""


@queues.command("list")
@output.json_option
@with_sessions
def list_(sessions: OperatorSessions, as_json: bool) -> None:
    """List the lanes of each queue with their entries and pauses."""
    lanes = pauses.lanes(sessions)
    if as_json:
        for lane in lanes:
            output.record(_record(lane))
        return
    output.table(
        ("lane", "weight", "entries", "scheduled", "parked", "oldest", "paused", "failing"),
        [(lane.name, lane.weight, lane.size.depth, lane.size.scheduled, lane.size.parked,
          seconds(lane.size.oldest_age), _paused(lane), _failing(lane)) for lane in lanes],
    )


@queues.command()
@click.argument("queue")
@click.option("--for", "time", metavar="TIME", callback=duration,
              help="Resume automatically after 90 (seconds), 15m, 2h ...")
@with_sessions
def pause(sessions: OperatorSessions, queue: str, time: float | None) -> None:
    """Pause a queue: submits are accepted but not applied."""
    try:
        until = pauses.pause(sessions, queue, time)
    except NoSuchQueue as error:
        raise _usage(queue, error) from None
    end = timestamp(until) if until else f"`processor queues resume {queue}`"
    output.message(f"{queue} is paused until {end}")


@queues.command()
@click.argument("queue")
@with_sessions
def resume(sessions: OperatorSessions, queue: str) -> None:
    """Resume a queue, whether an operator or repeated failures paused it."""
    try:
        complete = pauses.resume(sessions, queue)
    except NoSuchQueue as error:
        raise _usage(queue, error) from None
    output.message(f"{queue} resumed")
    if not complete:
        output.message("Redis has reached its memory limit: a lane that was paused after repeated"
                       " failures retries on its own; resume it again when Redis has room")


def _usage(queue: str, error: NoSuchQueue) -> click.BadParameter:
    return click.BadParameter(str(error), param_hint=f"{queue[:60]!r}")


def _record(lane: QueueLane) -> dict[str, Any]:
    return {
        "lane": lane.name,
        "queue": lane.queue,
        "configured": lane.configured,
        "weight": lane.weight,
        **size_mapping(lane.size),
        "paused": lane.paused_until is not None,
        "paused_until": timestamp(lane.paused_until) if lane.paused_until else None,
        "failing": list(lane.failing),
    }


def _failing(lane: QueueLane) -> str:
    return "; ".join(
        f"{kind['operations']}: {kind['sqlstate']} {kind['condition']}, {kind['held']} held, the"
        f" first {kind['first']}, next try at {kind['next_try']}" for kind in lane.failing
    )


def _paused(lane: QueueLane) -> str:
    if lane.paused_until is None:
        return "no"
    return f"until {timestamp(lane.paused_until) if lane.paused_until else 'resumed'}"
