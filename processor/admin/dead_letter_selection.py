"""Which dead letters an operator means, and the list of them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from processor.admin import buffer_membership
from processor.admin.sessions import OperatorSessions
from processor.connections.postgres_session import PostgresSession
from processor.errors import ProcessorError, RedisRefused, RedisUnavailable
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter

_PAGE = 200


class NoDeadLetter(ProcessorError):
    """There is no such dead letter, or it is no longer open."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant; `everything` includes those that were decided."""

    lane: str | None = None
    sqlstate: str | None = None
    since: datetime.datetime | None = None
    everything: bool = False
    buffer: str | None = None

    @property
    def narrows(self) -> bool:
        """Whether any of the operator's filters is set."""
        return (self.lane, self.sqlstate, self.since) != (None, None, None)

    def count(self, database: PostgresSession) -> int:
        """How many dead letters these are."""
        return dead_letters.count_listed(
            database, lane=self.lane, sqlstate=self.sqlstate, since=self.since,
            everything=self.everything, buffer=self.buffer,
        )

    def letters(self, database: PostgresSession, limit: int | None = None) -> Iterator[DeadLetter]:
        """These dead letters, oldest first; only one page is in memory at a time."""
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
            after, given = page[-1], given + len(page)


@dataclass(frozen=True, slots=True)
class Listing:
    """Dead letters, and how many there are in all.

    `buffer` is the identity of the settings' buffer; `problem` is why Redis did not return it.
    """

    letters: Sequence[DeadLetter]
    total: int
    buffer: str | None
    problem: ProcessorError | None

    def is_of_this_buffer(self, letter: DeadLetter) -> bool | None:
        """Whether processors of the settings' buffer decide a dead letter; None if unknown."""
        return None if self.problem else letter.buffer == self.buffer


def listing(sessions: OperatorSessions, selection: Selection, limit: int) -> Listing:
    """The oldest `limit` dead letters of a selection."""
    with sessions.database() as database:
        letters = list(selection.letters(database, limit))
        total = len(letters) if len(letters) < limit else selection.count(database)
    return _of_buffers(sessions, letters, total)


def of_id(sessions: OperatorSessions, transaction_id: str) -> Listing:
    """The dead letters of one transaction id. Raises NoDeadLetter.

    There are several if the id was used for several payloads (rule 15).
    """
    with sessions.database() as database:
        letters = dead_letters.find(database, transaction_id)
    if not letters:
        raise missing(transaction_id)
    return _of_buffers(sessions, letters, len(letters))


def missing(transaction_id: str) -> NoDeadLetter:
    """The error for an id that has no dead letter."""
    return NoDeadLetter(f"{transaction_id} is not a dead letter",
                        hint=f"see `processor explain {transaction_id}`")


def _of_buffers(sessions: OperatorSessions, letters: list[DeadLetter], total: int) -> Listing:
    try:
        return Listing(letters, total, buffer_membership.this_buffer(sessions), None)
    except (RedisUnavailable, RedisRefused) as error:
        return Listing(letters, total, None, error)
