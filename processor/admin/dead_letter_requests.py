"""Retry, edit or discard dead letters.

A request is recorded in the dead letter's row, and the owner of its lane carries it out in its turn
(rule 15). So nothing here changes the application's data, and a request may be recorded while no
processor runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from processor.admin import dead_letter_selection
from processor.admin.buffer_membership import BufferMembership
from processor.admin.dead_letter_selection import NoDeadLetter, Selection
from processor.admin.wording import count
from processor.connections.postgres_session import PostgresSession
from processor.errors import InvalidTransaction
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded

#: Seconds between two looks at a dead letter whose outcome is awaited.
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class OpenLetter:
    """A dead letter that awaits a decision; `payloads` open ones share its id (rule 15)."""

    letter: DeadLetter
    payloads: int


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a selection that is decided here, and how many dead letters are left out."""

    selection: Selection
    count: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request so far.

    `recorded` is False if the dead letter was decided before the request. `success` is False if it
    failed again or was not carried out in time.
    """

    letter: DeadLetter
    text: str
    success: bool = True
    recorded: bool = True


def open_letters(membership: BufferMembership, ids: Sequence[str]) -> list[OpenLetter]:
    """The open dead letters of these ids. Raises NoDeadLetter and OtherBuffer."""
    with membership.sessions.database() as database:
        return [_open_letter(database, membership, each) for each in ids]


def _open_letter(
    database: PostgresSession, membership: BufferMembership, transaction_id: str
) -> OpenLetter:
    letters = dead_letters.find(database, transaction_id)
    undecided = [letter for letter in letters if letter.outcome == "dead"]
    if not letters:
        raise dead_letter_selection.missing(transaction_id)
    if not undecided:
        raise NoDeadLetter(f"{transaction_id} is already {letters[-1].outcome}")
    accepted = [letter for letter in undecided if membership.accepts(letter)]
    if not accepted:
        membership.refuse(database, undecided[0])
    # The ledger calls the oldest one dead.
    return OpenLetter(accepted[0], len(accepted))


def scope(membership: BufferMembership, selection: Selection) -> Scope:
    """Narrow a selection to one buffer: the adopted one, else that of the settings.

    Raises NoDeadLetter if none remains.
    """
    with membership.sessions.database() as database:
        total = selection.count(database)
        if total:
            selection = replace(selection, buffer=membership.adopted or membership.buffer)
        remaining = selection.count(database)
    if not remaining:
        others = f" ({count(total, 'dead letter')} of other buffers)" if total else ""
        raise NoDeadLetter(f"no dead letter matches{others}", hint="see `processor dead list`")
    return Scope(selection, remaining, total - remaining)


def selected(membership: BufferMembership, selection: Selection) -> list[DeadLetter]:
    """All dead letters of a selection, in memory."""
    with membership.sessions.database() as database:
        return list(selection.letters(database))


def request(
    membership: BufferMembership, verb: str, letters: Sequence[DeadLetter],
    wait: float | None = None, edited: Encoded | None = None,
) -> Iterator[Outcome]:
    """Record a request for each dead letter, and wait up to `wait` seconds for all outcomes.

    Yields first the dead letters that were decided meanwhile, then the others. Raises OtherBuffer.
    """
    with membership.sessions.database() as database:
        recorded = []
        for letter in letters:
            if _record(database, membership, letter, verb, edited):
                recorded.append(letter)
            else:
                yield _decided_before(letter)
        if wait is not None:
            end = time.monotonic() + wait
            for letter in recorded:
                yield _awaited(database, letter, end)
            return
    for letter in recorded:
        yield Outcome(letter, f"{verb} requested")


def request_selected(
    membership: BufferMembership, verb: str, selection: Selection
) -> Iterator[Outcome]:
    """Record a request for every dead letter of a selection, a page in memory at a time."""
    with membership.sessions.database() as database:
        for letter in selection.letters(database):
            if _record(database, membership, letter, verb, None):
                yield Outcome(letter, f"{verb} requested")
            else:
                yield _decided_before(letter)


def _record(
    database: PostgresSession, membership: BufferMembership, letter: DeadLetter, verb: str,
    edited: Encoded | None,
) -> bool:
    membership.register_lane(database, letter)
    body, version = (edited.body, edited.version) if edited else (None, b"1")
    return dead_letters.record_request(
        database, letter, verb, body, version=version, buffer=membership.buffer
    )


def _decided_before(letter: DeadLetter) -> Outcome:
    return Outcome(letter, "was decided meanwhile", success=False, recorded=False)


def _awaited(database: PostgresSession, letter: DeadLetter, end: float) -> Outcome:
    while True:
        letters = dead_letters.find(database, letter.id)
        now = next(each for each in letters if each.hash == letter.hash)
        if now.outcome != "dead":
            return Outcome(letter, now.outcome)
        if now.request is None:
            return Outcome(letter, f"failed again: {now.reason}", success=False)
        if time.monotonic() > end:
            return Outcome(letter, f"{now.request} requested, not carried out yet", success=False)
        time.sleep(_POLL)


def edited(letter: DeadLetter, text: str | bytes, limit: int) -> Encoded:
    """The payload that replaces a dead letter's, at most `limit` bytes, checked as in `submit`.

    Raises InvalidTransaction.
    """
    transaction = Transaction.parse(text, stored=letter.id)
    if transaction.id != letter.id:
        # The ledger records the outcome under the id, so an edit must not change it.
        raise InvalidTransaction("id", "differs from that of the dead letter",
                                 hint=f"write {letter.id}")
    return transaction.encode(time.time(), limit)
