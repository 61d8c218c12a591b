"""`processor status`: who drains, how full the lanes are, how far replicas and dead letters are.

It reads what each processor last told, and the lanes themselves, from Redis: it works while
PostgreSQL is away. Status words and their meaning are those of /health; a replica is unheard if
nobody tells of it any more.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from processor.admin import overview
from processor.admin.overview import Overview
from processor.admin.sessions import OperatorSessions, with_servers
from processor.buffer import replica_status
from processor.cli import output
from processor.config.settings import Replicas
from processor.telemetry.status import (
    REPORT_LIFETIME,
    Replica,
    is_current,
    replica_mapping,
    timestamp,
)

_WELL = frozenset({"running", "standby", "outage", "paused"})
#: Whoever follows a replica says so each second, or each `replicas.interval` if that is longer;
#: what was told longer ago, seconds and rounds, is of one that was taken out of the settings, or
#: of a processor that is gone.
_ROUNDS = 5


@click.command()
@output.json_option
@with_servers
def status(servers: OperatorSessions, as_json: bool) -> int:
    """Show processors, lanes, replicas and dead letters; exit 1 if no processor is well."""
    with servers.redis() as redis:
        seen = overview.look(redis, servers.settings)
        told = overview.processors(redis, servers.settings)
        followed = replica_status.replicas(redis, servers.settings.namespace)
        losses = replica_status.losses(redis, servers.settings.namespace)
        full = overview.is_full(redis)
    summary = _summary(seen, told) | {
        "replicas": {
            name: replica_mapping(_as_of_now(each, servers.settings.replicas))
            for name, each in sorted(followed.items())
        },
        "losses": [each | {"ids": each["ids"].split(",")} for each in losses],
    }
    if as_json:
        output.record(summary | {"processors": told})
    else:
        _print(summary, told)
        _print_silence(full, told)
    words = {each["background_processor"]["status"] for each in told}
    return output.OK if words & _WELL and not words - _WELL else output.FAILED


def _print_silence(full: bool, told: list[dict[str, Any]]) -> None:
    if full:
        output.message("Redis has reached its memory limit: no processor can tell how it stands;"
                       " see /health of each")
    elif not told:
        output.message("no processor has told anything for 30 s: start one with `processor run`")


def _as_of_now(replica: Replica, settings: Replicas) -> Replica:
    """How a replica stands, or that nobody tells any more: then nobody knows how far behind it is.

    One that is lost stays lost until somebody who follows it takes it back.
    """
    lifetime = max(REPORT_LIFETIME, _ROUNDS * settings.interval)
    if replica.state == "lost" or is_current(replica.told, time.time(), lifetime):
        return replica
    return replace(replica, state="unheard", lag=None)


def _summary(seen: Overview, told: list[dict[str, Any]]) -> dict[str, Any]:
    owners = {
        name: (each["instance"], lane)
        for each in told
        for name, lane in each["lanes"].items()
        if lane["owner"]
    }
    return {
        "buffer": seen.identity,
        "at": timestamp(seen.now),
        "lanes": {
            name: {
                "depth": look.depth,
                "scheduled": look.scheduled,
                "parked": look.parked,
                "oldest_age": None if look.oldest_age is None else round(look.oldest_age, 3),
                "paused": overview.queue_of(name) in seen.paused,
                "owner": owners[name][0] if name in owners else None,
                "reason": owners[name][1]["reason"] if name in owners else "",
            }
            for name, look in seen.lanes.items()
        },
        "dead_letters": max(
            (each["background_processor"]["dead_letters"] for each in told), default=None
        ),
    }


def _print(summary: dict[str, Any], told: list[dict[str, Any]]) -> None:
    output.table(
        ("processor", "site", "status", "last run", "committed", "retried", "dead", "reason"),
        [(each["instance"], each["site"], p["status"], p["last_run"], p["transactions_processed"],
          p["retried"], p["dead"], p["reason"])
         for each in told for p in [each["background_processor"]]],
    )
    output.line("")
    output.table(
        ("lane", "entries", "scheduled", "parked", "oldest", "paused", "owner", "reason"),
        [(name, lane["depth"], lane["scheduled"], lane["parked"],
          output.seconds(lane["oldest_age"]), lane["paused"], lane["owner"], lane["reason"])
         for name, lane in summary["lanes"].items()],
    )
    if summary["replicas"]:
        output.line("")
        output.table(
            ("replica", "status", "lag", "replayed", "heard"),
            [(name, each["status"], output.seconds(each["lag"]), each["lsn"], each["heard"])
             for name, each in summary["replicas"].items()],
        )
    for each in summary["losses"]:
        output.message(
            f"{output.count(len(each['ids']), 'commit')} of {each['from']} lost in a failover to"
            f" {each['to']}: ids with --json; delete the key :losses when they are dealt with"
        )
    if summary["dead_letters"]:
        count = output.count(summary["dead_letters"], "dead letter")
        output.message(f"{count}: see `processor dead list`")
    for each in told:
        if each["background_processor"].get("loss"):
            output.message(each["background_processor"]["loss"])
