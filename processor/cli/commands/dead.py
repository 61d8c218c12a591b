"""`processor dead`: show dead letters, and request their retry, edit or discard.

Values of a payload are shown only with --values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from processor.admin import dead_letter_requests, dead_letter_selection, redaction
from processor.admin.buffer_membership import BufferMembership
from processor.admin.dead_letter_requests import Outcome
from processor.admin.dead_letter_selection import Listing, Selection
from processor.admin.sessions import OperatorSessions
from processor.admin.wording import count, suggestion
from processor.cli import output
from processor.cli.group import Group
from processor.cli.options import (
    buffer_id,
    duration,
    past_time,
    transaction_id,
    transaction_ids,
    with_sessions,
)
from processor.ledger import lane_rows
from processor.ledger.dead_letters import DeadLetter
from processor.transaction.encoding import as_submitted

F = TypeVar("F", bound=Callable[..., Any])


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combine options into one decorator."""
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


filters = _options(
    click.option("--lane", metavar="LANE", help="Of this lane: default:0."),
    click.option("--sqlstate", metavar="STATE", help="With this SQLSTATE, or its class: 23."),
    click.option("--since", metavar="TIME", callback=past_time,
                 help="Died in the last 2h, or since 2026-11-21T06:00:00Z."),
)
requesting = _options(
    click.option("--adopt", "adopted", metavar="BUFFER", callback=buffer_id,
                 help="Take over dead letters of this buffer, which no longer exists."),
    click.option("--wait", metavar="TIME", callback=duration,
                 help="Wait up to 30s, 5m ... for the outcome."),
    output.json_option,
)
several = _options(
    click.argument("ids", metavar="[ID]...", nargs=-1, callback=transaction_ids),
    filters,
    click.option("--all", "everything", is_flag=True, help="Every open dead letter."),
    click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
    click.option("--dry-run", is_flag=True, help="Show which, and change nothing."),
    requesting,
)


@click.group(cls=Group)
def dead() -> None:
    """Show, retry, edit and discard dead letters."""


@dead.command("list")
@filters
@click.option("--all", "everything", is_flag=True, help="Include applied and discarded ones.")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=100, show_default=True,
              help="Show the oldest N.")
@output.json_option
@with_sessions
def list_(
    sessions: OperatorSessions, lane: str | None, sqlstate: str | None, since: Any,
    everything: bool, limit: int, as_json: bool,
) -> None:
    """List dead letters of all buffers, oldest first."""
    selection = Selection(lane, sqlstate, since, everything)
    found = dead_letter_selection.listing(sessions, selection, limit)
    if lane is not None and not found.letters:
        _must_exist(sessions, lane)
    _report_unknown_buffer(found)
    if as_json:
        for letter in found.letters:
            output.record(_summary(letter, found))
    else:
        _table(found)
    if found.total > len(found.letters):
        output.message(f"{len(found.letters)} of {found.total} dead letters: see --limit")


def _must_exist(sessions: OperatorSessions, lane: str) -> None:
    """Raise BadParameter for a lane that is neither configured nor was ever owned."""
    configured = [f"{name}:{number}" for name, queue in sessions.settings.queues.items()
                  for number in range(queue.partitions)]  # fmt: skip
    with sessions.database() as database:
        lanes = sorted({*configured, *lane_rows.names(database)})
    if lane not in lanes:
        raise click.BadParameter(f"{lane[:60]!r}: no such lane ({suggestion(lane, lanes)})",
                                 click.get_current_context(), param_hint="--lane")


def _report_unknown_buffer(found: Listing) -> None:
    if found.problem is not None:
        output.message(f"{found.problem}; cannot tell which dead letters belong to this buffer")


def _table(found: Listing) -> None:
    """The dead letters; with their buffer if some belong to another one, which decides those."""
    columns = ["id", "lane", "died", "attempts", "keys", "holds", "outcome", "reason"]
    rows = [[x.id, x.lane, x.died_at, x.attempts, x.keys, x.holds, _state(x), x.reason]
            for x in found.letters]  # fmt: skip
    others = {x.buffer for x in found.letters if found.is_of_this_buffer(x) is False}
    if others:
        columns.insert(-1, "buffer")
        for letter, row in zip(found.letters, rows, strict=True):
            row.insert(-1, letter.buffer if letter.buffer in others else "this one")
    output.table(columns, rows)


@dead.command()
@click.argument("id", callback=transaction_id)
@click.option("--values", is_flag=True, help="Include the payload's values and the server's error.")
@output.json_option
@with_sessions
def show(sessions: OperatorSessions, id: str, values: bool, as_json: bool) -> None:
    """Show a dead letter; its values stay hidden without --values."""
    found = dead_letter_selection.of_id(sessions, id)
    _report_unknown_buffer(found)
    for letter in found.letters:
        fields = _summary(letter, found) | _details(letter, values)
        if as_json:
            output.record(fields)
            continue
        output.table(("field", "value"), [(name, _text(value)) for name, value in fields.items()])


@dead.command()
@several
@with_sessions
def retry(sessions: OperatorSessions, ids: list[str], **options: Any) -> int:
    """Apply dead letters again, by ID or by filter."""
    return _request(sessions, "retry", ids, **options)


@dead.command()
@several
@with_sessions
def discard(sessions: OperatorSessions, ids: list[str], **options: Any) -> int:
    """Give up dead letters, by ID or by filter, and release their keys."""
    return _request(sessions, "discard", ids, **options)


@dead.command()
@click.argument("id", callback=transaction_id)
@click.option("--file", type=click.File("rb"), help="Corrected JSON (-: standard input).")
@requesting
@with_sessions
def edit(
    sessions: OperatorSessions, id: str, file: BinaryIO | None, wait: float | None,
    adopted: str | None, as_json: bool,
) -> int:
    """Correct a dead letter in an editor or from a file, and apply it."""
    membership = BufferMembership(sessions, adopted)
    (letter,) = _open_letters(membership, [id])
    text = file.read() if file else _in_editor(letter)
    limit = sessions.settings.buffer.transaction_bytes
    edited = dead_letter_requests.edited(letter, text, limit)
    return _print_outcomes(
        dead_letter_requests.request(membership, "edit", [letter], wait, edited), as_json
    )


def _request(
    sessions: OperatorSessions, verb: str, ids: list[str], *, lane: str | None,
    sqlstate: str | None, since: Any, everything: bool, yes: bool, dry_run: bool,
    wait: float | None, adopted: str | None, as_json: bool,
) -> int:
    selection = Selection(lane, sqlstate, since)
    if bool(ids) == (selection.narrows or everything):
        raise click.UsageError(
            "give either IDs, or --lane, --sqlstate, --since or --all",
            click.get_current_context(),
        )
    membership = BufferMembership(sessions, adopted)
    if not ids:
        return _request_selected(membership, verb, selection, yes, dry_run, wait, as_json)
    letters = _open_letters(membership, ids)
    if dry_run:
        return _print_dry_run(letters, verb, as_json)
    if verb == "discard":
        output.confirm(f"discard {count(len(letters), 'dead letter')}", yes)
    return _print_outcomes(dead_letter_requests.request(membership, verb, letters, wait), as_json)


def _request_selected(
    membership: BufferMembership, verb: str, selection: Selection, yes: bool, dry_run: bool,
    wait: float | None, as_json: bool,
) -> int:
    scope = dead_letter_requests.scope(membership, selection)
    if scope.elsewhere:
        output.message(f"{count(scope.elsewhere, 'dead letter')} of other buffers left unchanged:"
                       " see `processor dead list`")
    letters: Sequence[DeadLetter] = ()
    if dry_run or wait is not None:
        letters = dead_letter_requests.selected(membership, scope.selection)
    if dry_run:
        return _print_dry_run(letters, verb, as_json)
    adopted = f" of buffer {membership.adopted}" if membership.adopted else ""
    output.confirm(f"{verb} {count(scope.count, 'dead letter')}{adopted}", yes)
    if wait is not None:
        outcomes = dead_letter_requests.request(membership, verb, letters, wait)
        return _print_outcomes(outcomes, as_json)
    # A dead letter that was decided meanwhile is not a failure, since no id was given.
    _print_outcomes(
        dead_letter_requests.request_selected(membership, verb, scope.selection), as_json
    )
    return output.OK


def _open_letters(membership: BufferMembership, ids: list[str]) -> list[DeadLetter]:
    found = dead_letter_requests.open_letters(membership, ids)
    for each in found:
        if each.payloads > 1:
            output.message(f"{each.letter.id} has {each.payloads} dead letters, using the oldest")
    return [each.letter for each in found]


def _print_outcomes(outcomes: Iterable[Outcome], as_json: bool) -> int:
    code = output.OK
    for each in outcomes:
        if not each.success:
            code = output.FAILED
        if each.recorded:
            _print_outcome(each.letter, each.text, as_json)
        else:
            output.message(f"{each.letter.id}: {each.text}")
    return code


def _print_dry_run(letters: Iterable[DeadLetter], verb: str, as_json: bool) -> int:
    for letter in letters:
        _print_outcome(letter, f"would {verb}", as_json)
    return output.OK


def _print_outcome(letter: DeadLetter, outcome: str, as_json: bool) -> None:
    if as_json:
        output.record({"id": letter.id, "lane": letter.lane, "outcome": outcome})
    else:
        output.line(f"{letter.id}  {outcome}")


def _in_editor(letter: DeadLetter) -> str:
    if not output.terminal(sys.stdin):
        raise click.UsageError("not a terminal, so no editor can open: give --file",
                               click.get_current_context())
    body = as_submitted(letter.edited or letter.body).decode("utf-8", "backslashreplace")
    try:
        body = msgspec.json.format(body, indent=2)
    except msgspec.DecodeError:
        output.message("the payload is not a transaction: replace it by one")
    text = click.edit(body, extension=".json")
    if text is None:
        raise output.Declined("the payload was not edited: nothing was changed")
    return text


def _summary(letter: DeadLetter, found: Listing) -> dict[str, Any]:
    return {
        "id": letter.id,
        "lane": letter.lane,
        "died_at": letter.died_at,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "sqlstate": letter.sqlstate,
        "keys": list(letter.keys),
        "holds": letter.holds,
        "outcome": letter.outcome,
        "request": letter.request,
        "requested_by": letter.requested_by,
        "buffer": letter.buffer,
        "of_this_buffer": found.is_of_this_buffer(letter),
    }


def _details(letter: DeadLetter, values: bool) -> dict[str, Any]:
    details = {
        "entry": letter.entry_id,
        "hash": letter.hash,
        "trace": letter.trace,
        "detail": letter.detail if values else "hidden, see --values",
        "payload": redaction.shown(letter.body, values),
    }
    if letter.edited is not None:
        details["edited"] = redaction.shown(letter.edited, values)
    return details


def _state(letter: DeadLetter) -> str:
    return f"{letter.request} requested" if letter.request else letter.outcome


def _text(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value
