"""`processor dead`: look at dead letters, and say what shall become of them.

Listing and showing tell what failed and why, without the payload's values unless they are asked
for. What is asked by retry, edit and discard is recorded by `request`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from processor.admin import buffer_membership, dead_letter_requests, redaction
from processor.admin.buffer_membership import BufferMembership
from processor.admin.dead_letter_requests import Choice, Missing
from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.cli.group import Group
from processor.cli.options import buffer_id, length, moment, transaction_id, transaction_ids
from processor.connections.postgres_session import PostgresSession
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter

F = TypeVar("F", bound=Callable[..., Any])


def filters(function: F) -> F:
    """The options that narrow which dead letters are meant."""
    for option in (
        click.option("--since", metavar="TIME", callback=moment,
                     help="Dead since 2h, or 2026-11-21T06:00:00Z."),
        click.option("--sqlstate", metavar="STATE", help="With this SQLSTATE or class, as 23."),
        click.option("--lane", help="Of this lane, as default:0."),
    ):
        function = option(function)
    return function


def asking(function: F) -> F:
    """The options of every request."""
    for option in (
        output.json_option,
        click.option("--wait", metavar="TIME", callback=length,
                     help="Wait this long for the outcome, as 30s."),
        click.option("--adopt", "gone", metavar="BUFFER", callback=buffer_id,
                     help="Take over dead letters of this buffer, which is gone for ever."),
    ):
        function = option(function)
    return function


@click.group(cls=Group)
def dead() -> None:
    """Show, retry, edit and discard dead letters."""


@dead.command("list")
@filters
@click.option("--all", "everything", is_flag=True, help="Also those that were decided.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@output.json_option
@with_servers
def list_(
    servers: OperatorSessions, lane: str | None, sqlstate: str | None, since: Any, everything: bool,
    limit: int, as_json: bool,
) -> None:
    """List dead letters of all buffers, oldest first."""
    choice = Choice(lane, sqlstate, since, everything)
    with servers.database() as database:
        letters = list(choice.letters(database, limit))
        total = len(letters) if len(letters) < limit else choice.count(database)
    here = buffer_membership.known(servers)
    if as_json:
        for letter in letters:
            output.record(_summary(letter, here(letter)))
    else:
        _table(letters, {letter.buffer for letter in letters if here(letter) is False})
    if total > len(letters):
        output.message(f"{len(letters)} of {total} dead letters: see --limit")


def _table(letters: list[DeadLetter], others: set[str]) -> None:
    """Whose they are is a column of its own if some are of `others`, which are decided there."""
    columns = ["id", "lane", "died", "attempts", "keys", "holds", "outcome", "reason"]
    rows = [[x.id, x.lane, x.died_at, x.attempts, x.keys, x.holds, _outcome(x), x.reason]
            for x in letters]  # fmt: skip
    if others:
        columns.insert(-1, "buffer")
        for letter, row in zip(letters, rows, strict=True):
            row.insert(-1, letter.buffer if letter.buffer in others else "this one")
    output.table(columns, rows)


@dead.command()
@click.argument("id", callback=transaction_id)
@click.option("--values", is_flag=True, help="With the payload's values and the server's words.")
@output.json_option
@with_servers
def show(servers: OperatorSessions, id: str, values: bool, as_json: bool) -> None:
    """Show a dead letter; values are left out unless asked for."""
    with servers.database() as database:
        letters = dead_letters.found(database, id)
    if not letters:
        raise Missing(f"{id} is no dead letter", hint=f"see `processor explain {id}`")
    here = buffer_membership.known(servers)
    for letter in letters:
        fields = _summary(letter, here(letter)) | _inside(letter, values)
        if as_json:
            output.record(fields)
            continue
        output.table(("field", "value"), [(name, _text(value)) for name, value in fields.items()])


@dead.command()
@click.argument("ids", nargs=-1, callback=transaction_ids)
@filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@asking
@with_servers
def retry(servers: OperatorSessions, ids: list[str], **options: Any) -> int:
    """Have dead letters applied once more, by ID or by filter."""
    return _request(servers, "retry", ids, **options)


@dead.command()
@click.argument("ids", nargs=-1, callback=transaction_ids)
@filters
@click.option("--all", "everything", is_flag=True, help="Every dead letter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@asking
@with_servers
def discard(servers: OperatorSessions, ids: list[str], **options: Any) -> int:
    """Give dead letters up, by ID or by filter; what waits behind them goes on."""
    return _request(servers, "discard", ids, **options)


@dead.command()
@click.argument("id", callback=transaction_id)
@click.option("--file", type=click.File("rb"), help="The corrected JSON (-: standard input).")
@asking
@with_servers
def edit(
    servers: OperatorSessions, id: str, file: BinaryIO | None, wait: float | None, gone: str | None,
    as_json: bool,
) -> int:
    """Correct a dead letter in the editor or from a file, and have it applied."""
    with servers.database() as database:
        known = BufferMembership(servers, gone)
        letter = dead_letter_requests.the_open_one(database, known, id)
    text = file.read() if file else _in_editor(letter)
    body = dead_letter_requests.edited(letter, text, servers.settings.buffer.transaction_bytes)
    return dead_letter_requests.ask(known, "edit", [letter], wait, as_json, body)


def _request(
    servers: OperatorSessions, what: str, ids: list[str], *, lane: str | None, sqlstate: str | None,
    since: Any, everything: bool, yes: bool, dry_run: bool, wait: float | None, gone: str | None,
    as_json: bool,
) -> int:
    choice = Choice(lane, sqlstate, since)
    if bool(ids) == (choice.narrows or everything):
        raise click.UsageError(
            "give either IDs, or --lane, --sqlstate, --since or --all",
            click.get_current_context(),
        )
    known = BufferMembership(servers, gone)
    if not ids:
        return _request_all(known, what, choice, yes, dry_run, wait, as_json)
    with servers.database() as database:
        letters = [dead_letter_requests.the_open_one(database, known, each) for each in ids]
    if dry_run:
        return _only_say(letters, what, as_json)
    if what == "discard":
        output.confirm(f"discard {output.count(len(letters), 'dead letter')}", yes)
    return dead_letter_requests.ask(known, what, letters, wait, as_json)


def _request_all(
    known: BufferMembership, what: str, choice: Choice, yes: bool, dry_run: bool,
    wait: float | None,
    as_json: bool,
) -> int:
    with known.servers.database() as database:
        choice, count = _of_one_buffer(database, known, choice)
        letters = list(choice.letters(database)) if dry_run or wait is not None else []
    if dry_run:
        return _only_say(letters, what, as_json)
    taken = f" of the buffer {choice.buffer}" if known.gone else ""
    output.confirm(f"{what} {output.count(count, 'dead letter')}{taken}", yes)
    if wait is not None:
        return dead_letter_requests.ask(known, what, letters, wait, as_json)
    return dead_letter_requests.ask_all(known, what, choice, as_json)


def _of_one_buffer(
    database: PostgresSession, known: BufferMembership, choice: Choice
) -> tuple[Choice, int]:
    """Those of the choice that are decided here, and how many: nobody's are taken unnamed."""
    every = choice.count(database)
    if every:
        choice = replace(choice, buffer=known.gone or known.here)
    count = choice.count(database)
    left = f"{output.count(every - count, 'dead letter')} of other buffers left alone"
    if not count:
        besides = f" ({left})" if every else ""
        raise Missing(f"no dead letter is meant by that{besides}", hint="see `processor dead list`")
    if every > count:
        output.message(f"{left}: see `processor dead list`")
    return choice, count


def _only_say(letters: list[DeadLetter], what: str, as_json: bool) -> int:
    for letter in letters:
        dead_letter_requests.say(letter, f"would {what}", as_json)
    return output.OK


def _in_editor(letter: DeadLetter) -> str:
    if not output.terminal(sys.stdin):
        raise click.UsageError("no terminal for an editor: give --file",
                               click.get_current_context())
    body = (letter.edited or letter.body).decode("utf-8", "backslashreplace")
    try:
        body = msgspec.json.format(body, indent=2)
    except msgspec.DecodeError:
        output.message("these bytes are no transaction: write one in their place")
    text = click.edit(body, extension=".json")
    if text is None:
        raise output.Declined("unchanged, nothing was done")
    return text


def _summary(letter: DeadLetter, here: bool | None) -> dict[str, Any]:
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
        "of_this_buffer": here,
    }


def _inside(letter: DeadLetter, values: bool) -> dict[str, Any]:
    inside = {
        "entry": letter.entry_id,
        "hash": letter.hash,
        "trace": letter.trace,
        "detail": letter.detail if values else "hidden, see --values",
        "payload": redaction.shown(letter.body, values),
    }
    if letter.edited is not None:
        inside["edited"] = redaction.shown(letter.edited, values)
    return inside


def _outcome(letter: DeadLetter) -> str:
    return f"{letter.request} requested" if letter.request else letter.outcome


def _text(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value
