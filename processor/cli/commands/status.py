"""`processor status`: processors, lanes, replicas and dead letters, read from Redis.

A replica is `unheard` if its progress is no longer published. The other status words, and their
meaning, are those of /health.
"""

from __future__ import annotations

from typing import Any

import click

from processor.admin.overview import size_mapping
from processor.admin.sessions import OperatorSessions
from processor.admin.status import LaneStatus, Status
from processor.admin.status import status as read
from processor.admin.wording import count, seconds
from processor.cli import output
from processor.cli.options import with_sessions
from processor.telemetry.status import replica_mapping, timestamp


@click.command()
@output.json_option
@with_sessions
def status(sessions: OperatorSessions, as_json: bool) -> int:
    """Show processors, lanes, replicas and dead letters.

    The exit code is 1 if no processor is running, or one is stuck or stopped.
    """
    found = read(sessions)
    if as_json:
        output.record(_record(found))
    else:
        _print_processors(found)
        output.line("")
        _print_lanes(found)
        if found.replicas:
            output.line("")
            _print_replicas(found)
        _print_messages(found)
    return output.OK if found.healthy else output.FAILED


def _record(found: Status) -> dict[str, Any]:
    return {
        "buffer": found.buffer,
        "at": timestamp(found.at),
        "lanes": {name: _lane(lane) for name, lane in found.lanes.items()},
        "dead_letters": found.dead_letters,
        "replicas": {name: replica_mapping(each) for name, each in found.replicas.items()},
        "losses": [{"from": each.before, "to": each.after, "ids": each.ids}
                   for each in found.losses],
        "processors": found.processors,
    }


def _lane(lane: LaneStatus) -> dict[str, Any]:
    return {**size_mapping(lane.size), "paused": lane.paused, "owner": lane.owner,
            "reason": lane.reason}


def _print_processors(found: Status) -> None:
    states = [(each, each["background_processor"]) for each in found.processors]
    output.table(
        ("processor", "site", "status", "last run", "committed", "retried", "dead", "reason"),
        [(each["instance"], each["site"], state["status"], state["last_run"],
          state["transactions_processed"], state["retried"], state["dead"], state["reason"])
         for each, state in states],
    )


def _print_lanes(found: Status) -> None:
    output.table(
        ("lane", "entries", "oldest", "scheduled", "parked", "parked for", "paused", "owner",
         "reason"),
        [(name, lane.size.depth, seconds(lane.size.oldest_age), lane.size.scheduled,
          lane.size.parked, seconds(lane.size.parked_oldest_age), lane.paused, lane.owner,
          lane.reason)
         for name, lane in found.lanes.items()],
    )


def _print_replicas(found: Status) -> None:
    output.table(
        ("replica", "status", "lag", "replayed", "last seen"),
        [(name, each.state, seconds(each.lag), each.lsn, timestamp(each.at))
         for name, each in found.replicas.items()],
    )


def _print_messages(found: Status) -> None:
    for loss in found.losses:
        output.message(
            f"{count(len(loss.ids), 'commit')} of {loss.before} lost in a failover to"
            f" {loss.after}: see their ids with --json; delete the key :losses when resolved"
        )
    if found.dead_letters:
        letters = count(found.dead_letters, "dead letter")
        output.message(f"{letters}: see `processor dead list`")
    for each in found.processors:
        if loss := each["background_processor"].get("loss"):
            output.message(loss)
    if found.redis_full:
        output.message("Redis has reached its memory limit, so processors cannot publish their"
                       " state: see /health of each")
    elif not found.processors:
        output.message("no processor has reported in the last 30 s: start one with"
                       " `processor run`")
