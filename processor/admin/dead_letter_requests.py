"""What an operator asks of dead letters: retry, discard or edit them.

A request is recorded in the dead letter's row; the owner of its lane carries it out in its turn
(rule 15), so nothing here writes data, and it may be asked while nobody drains.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass

from processor.admin.buffer_membership import BufferMembership
from processor.cli import output
from processor.connections.postgres_session import PostgresSession
from processor.errors import InvalidTransaction, ProcessorError
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter
from processor.transaction.builder import Transaction

_PAGE = 200
_LOOK = 0.2


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant."""

    lane: str | None = None
    sqlstate: str | None = None
    since: datetime.datetime | None = None
    everything: bool = False
    buffer: str | None = None

    @property
    def narrows(self) -> bool:
        """Whether any filter is set."""
        return (self.lane, self.sqlstate, self.since) != (None, None, None)

    def count(self, database: PostgresSession) -> int:
        """How many there are."""
        return dead_letters.count_listed(
            database, lane=self.lane, sqlstate=self.sqlstate, since=self.since,
            everything=self.everything, buffer=self.buffer,
        )

    def letters(self, database: PostgresSession, limit: int | None = None) -> Iterator[DeadLetter]:
        """Those letters, oldest first, a page in memory at a time."""
        after, given = None, 0
        while limit is None or given < limit:
            count = _PAGE if limit is None else min(_PAGE, limit - given)
            page = dead_letters.listed(
                database, lane=self.lane, sqlstate=self.sqlstate, since=self.since,
                everything=self.everything, buffer=self.buffer, limit=count, after=after,
            )
            yield from page
            if len(page) < count:
                return
            after, given = page[-1].id, given + len(page)


class Missing(ProcessorError):
    """What was asked for is not there."""


def the_open_one(
    database: PostgresSession, belonging: BufferMembership, transaction_id: str
) -> DeadLetter:
    """The dead letter of this id that waits for a decision. Raises Missing and Elsewhere."""
    letters = dead_letters.found(database, transaction_id)
    waiting = [letter for letter in letters if letter.outcome == "dead"]
    if not letters:
        raise Missing(f"{transaction_id} is no dead letter",
                      hint=f"see `processor explain {transaction_id}`")
    if not waiting:
        raise Missing(f"{transaction_id} is {letters[-1].outcome} already")
    own = [letter for letter in waiting if belonging.takes(letter)]
    if not own:
        belonging.refuse(database, waiting[0])
    if len(own) > 1:
        # One id, several payloads (rule 15): the first is the one that the ledger calls dead.
        output.message(f"{transaction_id} has {len(own)} dead letters, taking the oldest")
    return own[0]


def ask(
    belonging: BufferMembership, what: str, letters: list[DeadLetter], wait: float | None,
    as_json: bool,
    edited: bytes | None = None,
) -> int:
    """Record a request for each letter, and wait for their outcomes if told to."""
    with belonging.servers.database() as database:
        asked = [each for each in letters if _ask(database, belonging, each, what, edited)]
        code = output.OK if len(asked) == len(letters) else output.FAILED
        if wait is not None:
            return max(code, _await(database, asked, wait, as_json))
    for letter in asked:
        say(letter, f"{what} requested", as_json)
    return code


def ask_all(belonging: BufferMembership, what: str, choice: Choice, as_json: bool) -> int:
    """Record a request for every letter that a choice names."""
    with belonging.servers.database() as database:
        for letter in choice.letters(database):
            if _ask(database, belonging, letter, what, None):
                say(letter, f"{what} requested", as_json)
    return output.OK


def _ask(
    database: PostgresSession, belonging: BufferMembership, letter: DeadLetter, what: str,
    edited: bytes | None
) -> bool:
    belonging.make_room(database, letter)
    if dead_letters.ask(database, letter, what, edited, buffer=belonging.here):
        return True
    output.message(f"{letter.id}: was decided meanwhile")
    return False


def say(letter: DeadLetter, outcome: str, as_json: bool) -> None:
    """Print what became of a letter, or of the request."""
    if as_json:
        output.record({"id": letter.id, "lane": letter.lane, "outcome": outcome})
    else:
        output.line(f"{letter.id}  {outcome}")


def _await(database: PostgresSession, letters: list[DeadLetter], wait: float, as_json: bool) -> int:
    end = time.monotonic() + wait
    code = output.OK
    for letter in letters:
        outcome = _outcome(database, letter, end)
        say(letter, outcome, as_json)
        if outcome not in ("applied", "discarded"):
            code = output.FAILED
    return code


def _outcome(database: PostgresSession, letter: DeadLetter, end: float) -> str:
    while True:
        found = dead_letters.found(database, letter.id)
        now = next(each for each in found if each.hash == letter.hash)
        if now.outcome != "dead":
            return now.outcome
        if now.request is None:
            return f"failed again: {now.reason}"
        if time.monotonic() > end:
            return f"{now.request} requested, not carried out yet"
        time.sleep(_LOOK)


def edited(letter: DeadLetter, text: str | bytes, limit: int) -> bytes:
    """The bytes of an edited transaction, checked as at the door. Raises InvalidTransaction."""
    transaction = Transaction.parse(text)
    if transaction.id != letter.id:
        # The id decides the fate of this transaction and of no other.
        raise InvalidTransaction("id", "is not that of the dead letter", hint=f"write {letter.id}")
    return transaction.encode(time.time(), limit).body
