"""`processor explain`: where a transaction is, why it is not applied, what would release it.

PostgreSQL is asked first, since it decides; Redis tells where the rest waits, and the processors
what keeps them. With PostgreSQL away the answer is what Redis knows, and says so.
"""

from __future__ import annotations

import datetime
from typing import Any

import click

from processor.admin import find, overview
from processor.admin.find import Found
from processor.admin.overview import Overview
from processor.admin.sessions import OperatorSessions, with_servers
from processor.buffer.entry_ids import sortable
from processor.cli import output
from processor.cli.options import transaction_id
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import dead_letters, outcomes
from processor.ledger.dead_letters import DeadLetter
from processor.ledger.outcomes import LedgerRow
from processor.telemetry.status import timestamp
from processor.transaction.ids import id_of_key

Answer = dict[str, Any]

#: A pass takes a second or two at most unless something hangs.
_SILENT = 10.0


@click.command()
@click.argument("id", callback=transaction_id, required=False)
@click.option("--idempotency-key", "key", help="The one with this idempotency key.")
@output.json_option
@with_servers
def explain(servers: OperatorSessions, id: str | None, key: str | None, as_json: bool) -> int:
    """Say where the transaction ID is, why it is not applied, and what would release it."""
    if (id is None) == (key is None):
        raise click.UsageError("give either an ID or --idempotency-key",
                               click.get_current_context())
    wanted = id or id_of_key(key or "")
    row, letters, away = _ask_database(servers, wanted)
    with servers.redis() as redis:
        seen = overview.look(redis, servers.settings)
        namespace = servers.settings.namespace
        found = find.find(redis, namespace, list(seen.lanes), wanted)
        told = overview.processors(redis, servers.settings)
    if away is not None and found is None:
        raise away
    withheld = servers.settings.settle == "replicated"
    answer: Answer = {"id": wanted} | _answer(row, letters, found, seen, told, withheld=withheld)
    if row is not None and servers.settings.replicas.servers:
        answer["replicas"] = _on_replicas(servers, wanted)
    if away is not None:
        output.message(f"{away}; this is what Redis knows")
    if as_json:
        output.record(answer)
    else:
        told_of = [(name, _shown(value)) for name, value in answer.items() if value is not None]
        output.table(("field", "value"), told_of)
    return output.FAILED if answer["place"] == "unknown" else output.OK


def _ask_database(
    servers: OperatorSessions, wanted: str
) -> tuple[LedgerRow | None, list[DeadLetter], DatabaseUnavailable | None]:
    try:
        with servers.database() as database:
            return outcomes.row(database, wanted), dead_letters.found(database, wanted), None
    except DatabaseUnavailable as error:
        return None, [], error
    except DatabaseError as error:
        hint = "see `processor doctor`"
        return None, [], DatabaseUnavailable(f"the ledger cannot be read: {error}", hint=hint)


def _on_replicas(servers: OperatorSessions, wanted: str) -> dict[str, bool | None]:
    """Whether each replica shows it; None for one that cannot be asked."""
    shown: dict[str, bool | None] = {}
    for name, dsn in servers.settings.replicas.servers.items():
        try:
            with servers.replica(dsn) as database:
                shown[name] = outcomes.row(database, wanted) is not None
        except (DatabaseUnavailable, DatabaseError):
            shown[name] = None
    return shown


def _shown(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    words = {True: "yes", False: "not yet", None: "away"}
    return ", ".join(f"{name}: {words[there]}" for name, there in value.items())


def _answer(
    row: LedgerRow | None, letters: list[DeadLetter], found: Found | None, seen: Overview,
    told: list[Answer], *, withheld: bool,
) -> Answer:
    waiting = next((letter for letter in letters if letter.outcome == "dead"), None)
    if row is not None and row.outcome != "dead":
        return _decided(row, found, waiting, withheld=withheld)
    if waiting is not None:
        return _dead(waiting, seen.identity)
    if found is None:
        return {
            "place": "unknown",
            "why": "neither the buffer nor the ledger knows it: it was never accepted here, or was"
            " settled longer ago than ledger.retention",
            "release": "submit it; if it was committed before, see the table itself",
        }
    reasons = {"parked": _parked, "scheduled": _scheduled, "stream": _in_stream}
    return _place(found) | reasons[found.where](found, seen, told)


def _decided(
    row: LedgerRow, found: Found | None, clash: DeadLetter | None, *, withheld: bool
) -> Answer:
    answer: Answer = {
        "place": row.outcome, "lane": row.lane, "entry": row.entry_id,
        "at": row.committed_at, "buffer": row.buffer, "why": None, "release": None,
    }
    if found is not None:
        answer["why"] = f"also in Redis ({found.where}): to be settled by the lane's owner"
        if withheld and found.where == "stream":
            answer["why"] = "also in Redis until the replicas have it (settle: replicated)"
    if clash is not None:
        answer["why"] = "another payload came with the same id and is a dead letter"
        answer["release"] = f"see `processor dead show {clash.id}`"
    return answer


def _dead(letter: DeadLetter, here: str | None) -> Answer:
    release = f"`processor dead retry {letter.id}`, `dead edit` or `dead discard`"
    if letter.buffer != here:
        release += f": it belongs to another buffer, {letter.buffer}, and is decided there"
    elif letter.request:
        release = (f"{letter.request} was requested by {letter.requested_by}:"
                   " the owner of the lane carries it out in its turn")
    holds = f"; it holds {', '.join(letter.keys)}" if letter.holds else ""
    return {
        "place": "dead", "lane": letter.lane, "entry": letter.entry_id, "at": letter.died_at,
        "attempts": letter.attempts, "why": f"{letter.reason}{holds}", "release": release,
    }


def _place(found: Found) -> Answer:
    return {
        "place": found.where,
        "lane": found.lane,
        "entry": found.entry_id or None,
        "keys": list(found.keys) or None,
    }


def _parked(found: Found, seen: Overview, told: list[Answer]) -> Answer:
    answer: Answer = {"attempts": found.attempt, "reason": found.reason or None}
    ahead = _ahead(found)
    if ahead is not None:
        return answer | ahead
    if found.retry_at is None:
        return answer | {
            "why": "it stands first in its lines and nothing is to try it",
            "release": "see `processor verify`; a processor that takes the lane tries it",
        }
    if found.retry_at <= seen.now:
        return answer | _lane(found, seen, told, "its next try is due")
    return answer | {
        "why": f"it failed {output.count(found.attempt, 'time')}"
        + (f", the last one for {found.reason}" if found.reason else ""),
        "release": f"it is tried again at {timestamp(found.retry_at)}",
    }


def _ahead(found: Found) -> Answer | None:
    """The one that stands before it, if it shares a key with somebody."""
    for key, head in found.heads.items():
        if head.order < sortable(found.entry_id):
            return {
                "waits_behind": head.id,
                "why": f"{head.id} holds the key {key!r} and came earlier",
                "release": f"what becomes of that one: `processor explain {head.id}`",
            }
    return None


def _scheduled(found: Found, seen: Overview, told: list[Answer]) -> Answer:
    assert found.due is not None
    due = {"due": timestamp(found.due)}
    if found.due <= seen.now:
        return due | _lane(found, seen, told, "it is due and not moved into its lane yet")
    return due | {"why": "it is delayed until then", "release": "nothing: it comes by itself"}


def _in_stream(found: Found, seen: Overview, told: list[Answer]) -> Answer:
    if found.version.isdigit() and int(found.version) > 1:
        return {
            "why": f"a later release wrote it (envelope version {found.version})",
            "release": "update the processor",
        }
    return _ahead(found) or _lane(found, seen, told, "it waits its turn")


def _who_keeps(lane: str, now: float, told: list[Answer]) -> Answer | None:
    """What the processor says that owns the lane, or one that would if its server were there."""
    says = [
        state["lanes"][lane] | {
            "instance": state["instance"],
            "silent": now - (_moment(state["background_processor"]["last_run"]) or now),
        }
        for state in told if lane in state["lanes"]
    ]
    says.sort(key=lambda each: (not each["owner"] or each["silent"] > _SILENT,
                                each["status"] != "outage", each["silent"]))
    return says[0] if says and (says[0]["owner"] or says[0]["status"] == "outage") else None


def _moment(text: str | None) -> float | None:
    return None if text is None else datetime.datetime.fromisoformat(text).timestamp()


def _lane(found: Found, seen: Overview, told: list[Answer], else_: str) -> Answer:
    """What keeps the lane: an operator, an outage, nobody there; else its turn."""
    queue = overview.queue_of(found.lane)
    resume = f"`processor queues resume {queue}`"
    if queue in seen.paused:
        until = seen.paused[queue]
        end = f" until {timestamp(until)}" if until else ""
        return {"why": f"the queue {queue} is paused by an operator{end}", "release": resume}
    if not told:
        return {"why": "no processor runs", "release": "`processor run`"}
    kept = _who_keeps(found.lane, seen.now, told)
    away = [each["background_processor"] for each in told]
    if kept is None and (reasons := [p["reason"] for p in away if p["status"] == "outage"]):
        # It has met no lane yet.
        return {"why": f"outage: {reasons[0]}", "release": "the return of the server"}
    if kept is None:
        return {"why": f"no processor owns the lane {found.lane}", "release": "see `drain`, or wait"
                " for the owner's session to end (database.takeover)"}
    if kept["status"] == "outage":
        # Before its silence: no pass is finished in an outage.
        return {"why": f"outage: {kept['reason']}", "release": "the return of the server"}
    if kept["silent"] > _SILENT:
        return {"why": f"its owner {kept['instance']} has finished no pass for"
                f" {output.seconds(kept['silent'])}", "release": "see its log; end it if it hangs"}
    if kept["status"] == "paused":
        return {"why": f"the lane is paused: {kept['reason']}", "release": f"its end, or {resume}"}
    look = seen.lanes[found.lane]
    return {
        "why": f"{else_}: {look.depth} entries in the lane, the oldest is"
        f" {output.seconds(look.oldest_age)} old",
        "release": "nothing: it comes by itself",
    }
