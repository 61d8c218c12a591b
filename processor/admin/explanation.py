"""Where a transaction is, why it is not applied, and what releases it.

The ledger is asked first, since it decides. Redis shows where a transaction waits, and the states
that processors publish show what keeps it there. While PostgreSQL is unavailable, the explanation
rests on Redis alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from processor.admin import find, overview
from processor.admin.find import Found
from processor.admin.overview import PublishedState
from processor.admin.sessions import OperatorSessions
from processor.admin.wording import count, seconds
from processor.buffer import observation
from processor.buffer.entry_ids import sortable
from processor.buffer.observation import BufferObservation
from processor.buffer.parked import HELD
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.ledger import dead_letters, outcomes
from processor.ledger.dead_letters import DeadLetter
from processor.ledger.outcomes import LedgerRow
from processor.telemetry.status import OUTAGES, timestamp
from processor.transaction.operations import VERSION

#: Seconds. A pass takes a second or two, so an owner that finished none for so long hangs.
_SILENT = 10.0

_IN_TURN = "nothing to do: it is applied in its turn"
_RELEASED = {
    "outage": "nothing to do: it is applied when the server is available again",
    "misconfigured": "put right what the server refuses: it is applied then",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a transaction is, why it is not applied (None if it is), and what releases it.

    `place` is applied, discarded, dead, parked, scheduled, stream or unknown. `facts` has what else
    is known there, such as lane and attempts. `replicas` says whether each replica shows the
    transaction, None if it cannot be asked. `problem` is why PostgreSQL could not be asked.
    """

    place: str
    why: str | None
    release: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    replicas: Mapping[str, bool | None] | None = None
    problem: DatabaseUnavailable | None = None


@dataclass(frozen=True, slots=True)
class _Redis:
    """What Redis knows: the transaction, its buffer and the processors."""

    found: Found | None
    seen: BufferObservation
    states: Sequence[PublishedState]


def explain(sessions: OperatorSessions, transaction_id: str) -> Explanation:
    """Explain one transaction.

    Raises RedisUnavailable and RedisRefused; DatabaseUnavailable if Redis does not have it either.
    """
    row, letters, problem = _ask_ledger(sessions, transaction_id)
    with sessions.redis() as redis:
        seen = observation.observe(redis, sessions.settings)
        namespace = sessions.settings.namespace
        found = find.find(redis, namespace, list(seen.lanes), transaction_id)
        known = _Redis(found, seen, overview.processors(redis, sessions.settings))
    if problem is not None and found is None:
        raise problem
    withheld = sessions.settings.settle == "replicated"
    explanation = replace(_explanation(row, letters, known, withheld=withheld), problem=problem)
    if row is not None and sessions.settings.replicas.servers:
        return replace(explanation, replicas=_on_replicas(sessions, transaction_id))
    return explanation


def _ask_ledger(
    sessions: OperatorSessions, transaction_id: str
) -> tuple[LedgerRow | None, list[DeadLetter], DatabaseUnavailable | None]:
    try:
        with sessions.database() as database:
            row = outcomes.row(database, transaction_id)
            letters = dead_letters.find(database, transaction_id)
            if row is not None and row.outcome == "dead" and not letters:
                letters = dead_letters.of_entry(database, row.lane, row.entry_id)
            return row, letters, None
    except DatabaseUnavailable as error:
        return None, [], error
    except DatabaseError as error:
        hint = "see `processor doctor`"
        return None, [], DatabaseUnavailable(f"the ledger cannot be read: {error}", hint=hint)


def _on_replicas(sessions: OperatorSessions, transaction_id: str) -> dict[str, bool | None]:
    shown: dict[str, bool | None] = {}
    for name, dsn in sessions.settings.replicas.servers.items():
        try:
            with sessions.replica(dsn) as database:
                shown[name] = outcomes.row(database, transaction_id) is not None
        except (DatabaseUnavailable, DatabaseError):
            shown[name] = None
    return shown


def _explanation(
    row: LedgerRow | None, letters: list[DeadLetter], known: _Redis, *, withheld: bool
) -> Explanation:
    open_letter = next((letter for letter in letters if letter.outcome == "dead"), None)
    if row is not None and row.outcome != "dead":
        return _decided(row, known.found, open_letter, withheld=withheld)
    if open_letter is not None:
        return _dead(open_letter, known.seen.identity)
    if known.found is None:
        return Explanation(
            "unknown",
            "neither Redis nor the ledger has it: it was never accepted here, or was settled longer"
            " ago than ledger.retention",
            "submit it; if it may have been committed before, look into the table first",
        )
    reasons = {"parked": _parked, "scheduled": _scheduled, "stream": _in_stream}
    return reasons[known.found.where](known.found, known)


def _decided(
    row: LedgerRow, found: Found | None, clash: DeadLetter | None, *, withheld: bool
) -> Explanation:
    facts = {"lane": row.lane, "entry": row.entry_id, "at": row.committed_at, "buffer": row.buffer}
    why = release = None
    if found is not None:
        why = f"also in Redis ({found.where}): the owner of the lane removes it"
        if withheld and found.where == "stream":
            why = "also in Redis until the replicas have it (settle: replicated)"
    if clash is not None:
        why = "the same id came with another payload, which is a dead letter"
        release = f"see `processor dead show {clash.id}`"
    return Explanation(row.outcome, why, release, facts)


def _dead(letter: DeadLetter, buffer: str | None) -> Explanation:
    release = f"`processor dead retry {letter.id}`, `dead edit` or `dead discard`"
    if letter.buffer != buffer:
        release += f", with the settings of the buffer to which it belongs, {letter.buffer}"
    elif letter.request:
        release = (f"{letter.request} was requested by {letter.requested_by}:"
                   " the owner of the lane carries it out in its turn")
    keys = f"{'key' if len(letter.keys) == 1 else 'keys'} {', '.join(letter.keys)}"
    why = f"{letter.reason}; it holds {keys}" if letter.holds else letter.reason
    facts = {"lane": letter.lane, "entry": letter.entry_id, "at": letter.died_at,
             "attempts": letter.attempts}  # fmt: skip
    return Explanation("dead", why, release, facts)


def _waiting(
    found: Found, why: str, release: str, facts: Mapping[str, Any] | None = None
) -> Explanation:
    """The explanation of a transaction that waits in Redis."""
    where = {"lane": found.lane, "entry": found.entry_id or None, "keys": list(found.keys) or None}
    return Explanation(found.where, why, release, where | dict(facts or {}))


def _parked(found: Found, known: _Redis) -> Explanation:
    if found.damaged:
        return _waiting(found, "its parked record is damaged, so its owner skips it",
                        "see `processor verify`")
    if later := _of_later_release(found):
        return later
    facts: dict[str, Any] = {"attempts": found.attempt, "reason": found.reason or None}
    if blocked := _blocked(found, facts):
        return blocked
    if found.retry_at is None:
        return _waiting(found, "it is first in the lines of its keys, but no retry is planned",
                        "see `processor verify`; a processor that acquires the lane retries it",
                        facts)
    if found.retry_at <= known.seen.now:
        return _waiting(found, *_lane(found, known, "its next attempt is due"), facts)
    if found.retry_at >= HELD:
        queue = found.lane.rpartition(":")[0]
        return _waiting(found, "all transactions of its kind fail, so they are held: see"
                        " `processor queues list`",
                        f"the first of them that succeeds, or `processor queues resume {queue}`",
                        facts)
    last = f", last with {found.reason}" if found.reason else ""
    return _waiting(found, f"it failed {count(found.attempt, 'time')}{last}",
                    f"its next attempt is at {timestamp(found.retry_at)}", facts)


def _of_later_release(found: Found) -> Explanation | None:
    if not found.version.isdigit() or int(found.version) <= int(VERSION):
        return None
    return _waiting(found, f"a later release wrote it (envelope version {found.version})",
                    "upgrade the processor")


def _blocked(found: Found, facts: Mapping[str, Any]) -> Explanation | None:
    """The explanation by an earlier transaction that holds one of its keys, if one does."""
    for key, head in found.heads.items():
        if head.order < sortable(found.entry_id):
            return _waiting(
                found, f"{head.id} came earlier and holds the key {key!r}",
                f"the outcome of that transaction: `processor explain {head.id}`",
                {**facts, "waits_behind": head.id},
            )
    return None


def _scheduled(found: Found, known: _Redis) -> Explanation:
    assert found.due is not None
    due = timestamp(found.due)
    if found.due <= known.seen.now:
        reason = _lane(found, known, "it is due, but not moved into its lane yet")
        return _waiting(found, *reason, {"due": due})
    return _waiting(found, f"it is delayed until {due}", "nothing to do: it is applied when due",
                    {"due": due})


def _in_stream(found: Found, known: _Redis) -> Explanation:
    if later := _of_later_release(found):
        return later
    return _blocked(found, {}) or _waiting(found, *_lane(found, known, "it waits for its turn"))


def _lane(found: Found, known: _Redis, otherwise: str) -> tuple[str, str]:
    """Why a transaction that could be applied is not, and what releases it.

    The causes are a pause, an outage, or a processor that is missing or hangs. `otherwise` is the
    reason if the lane is at work.
    """
    queue = observation.queue_of(found.lane)
    resume = f"`processor queues resume {queue}`"
    if queue in known.seen.paused:
        until = known.seen.paused[queue]
        end = f" until {timestamp(until)}" if until else ""
        return f"the queue {queue} is paused by an operator{end}", resume
    if not known.states:
        return "no processor is running", "start one with `processor run`"
    keeper = _keeper(found.lane, known)
    if keeper is None:
        return _without_owner(found.lane, known.states)
    if keeper["status"] in OUTAGES:
        # Checked before the silence: no pass finishes during an outage.
        return f"{keeper['status']}: {keeper['reason']}", _RELEASED[keeper["status"]]
    if keeper["silent"] > _SILENT:
        return (f"its owner {keeper['instance']} has finished no pass for"
                f" {seconds(keeper['silent'])}",
                "see the log of that processor; end it if it hangs")
    if keeper["status"] == "paused":
        return f"the lane is paused: {keeper['reason']}", f"the end of the pause, or {resume}"
    size = known.seen.lanes[found.lane]
    return (f"{otherwise}: the lane has {count(size.depth, 'entry')}, the oldest is"
            f" {seconds(size.oldest_age)} old", _IN_TURN)


def _without_owner(lane: str, states: Sequence[PublishedState]) -> tuple[str, str]:
    processors = [each["background_processor"] for each in states]
    if away := [each for each in processors if each["status"] in OUTAGES]:
        # A processor that starts during an outage has seen no lane yet.
        return f"{away[0]['status']}: {away[0]['reason']}", _RELEASED[away[0]["status"]]
    return (f"no processor owns the lane {lane}",
            "wait for the former owner's session to end (database.takeover), or check that the"
            " setting `drain` of a processor includes the queue")


def _keeper(lane: str, known: _Redis) -> dict[str, Any] | None:
    """The published state of the lane by its owner, or by a processor that is in an outage."""
    reports = [
        state["lanes"][lane] | {
            "instance": state["instance"],
            "silent": known.seen.now - (
                _unix_time(state["background_processor"]["last_run"]) or known.seen.now
            ),
        }
        for state in known.states if lane in state["lanes"]
    ]
    reports.sort(key=lambda each: (not each["owner"] or each["silent"] > _SILENT,
                                   each["status"] not in OUTAGES, each["silent"]))
    first = reports[0] if reports else None
    return first if first and (first["owner"] or first["status"] in OUTAGES) else None


def _unix_time(text: str | None) -> float | None:
    return None if text is None else datetime.datetime.fromisoformat(text).timestamp()
