"""What operators ask about dead letters: retry, edit or discard, recorded in the letter's row.

The owner of the lane carries a request out in its turn (rule 15) and then releases the keys that
the dead letter held.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from processor.apply.committer import Commit
from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.apply.retry import backoff
from processor.buffer import commit_notes, parked, waiting_lines
from processor.buffer.commit_notes import Note
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import (
    ENDS_SESSION_STATE,
    FENCED_STATE,
    DatabaseError,
    DatabaseUnavailable,
    RedisRefused,
)
from processor.ledger import dead_letters
from processor.ledger.dead_letters import DeadLetter, Reason
from processor.ledger.lane_rows import Ownership
from processor.ownership.owned_lane import OwnedLane
from processor.ownership.owners import Owners

log = logging.getLogger("processor.drain")

_AT_ONCE = 100
#: Seconds of a pass for requests; those that are left have their turn in the next one.
_BUDGET = 0.25
#: Requests wait for so long after a lock was in the way, at most, seconds.
_LONGEST_WAIT = 10.0


class OperatorRequests:
    """Carries out the requests about one processor's lanes; `done` counts them."""

    def __init__(
        self, settings: Settings, database: PostgresSession, redis: RedisConnection,
        owners: Owners, writer: DeadLetterWriter,
    ) -> None:  # fmt: skip
        self._attempts = settings.retry.attempts
        self._database = database
        self._redis = redis
        self._owners = owners
        self._writer = writer
        #: How often in a row the session ended while a dead letter was tried, by its id.
        self._session_ends: dict[str, int] = {}
        #: How often a lock was in the way since a request was last carried out, and until when all
        #: requests wait for it; which request met it last, by its id.
        self._blocked = 0
        self._blocked_until = float("-inf")
        self._met: dict[str, float] = {}
        self.done = 0

    def carry_out(self) -> bool:
        """Carry out what was requested; return whether keys were released.

        This is also the call with which an idle owner touches the server, so that its session is
        not taken for a frozen one (rule 4).
        """
        lanes = {lane.name: lane for lane in self._owners.owned}
        letters = dead_letters.open_requests(
            self._database, self._owners.buffer, list(lanes), _AT_ONCE
        )
        now = time.monotonic()
        if not letters:
            self._met.clear()
        # Those that met a lock come last, or they would keep the others from their turn.
        letters.sort(key=lambda letter: self._met.get(letter.id, 0.0))
        released = False
        for letter in letters:
            # One that is in the way costs one wait: the others may need the same table.
            if self._blocked_until > time.monotonic() or time.monotonic() - now > _BUDGET:
                break
            released = self._carry_out(lanes[letter.lane], letter) or released
        return released

    def _put_off(self, letter: DeadLetter, error: DatabaseError) -> None:
        self._blocked += 1
        now = self._met[letter.id] = time.monotonic()
        wait = backoff(self._blocked, 1.0, _LONGEST_WAIT)
        self._blocked_until = now + wait
        log.warning("dead letter %s: %s put off: %s; requests are tried again in %.0f s", letter.id,
                    letter.request, error, wait)  # fmt: skip

    def _carry_out(self, lane: OwnedLane, letter: DeadLetter) -> bool:
        if lane.owner is None:
            return False
        try:
            commit = self._commit(lane.owner, letter)
        except DatabaseError as error:
            if error.sqlstate == FENCED_STATE:
                lane.fenced()
            else:
                self._put_off(letter, error)
            return False
        self._blocked = 0
        if commit is None:
            log.warning("dead letter %s: %s failed, so it stays a dead letter: see"
                        " `processor dead show`", letter.id, letter.request)  # fmt: skip
            if letter.holds:
                self._hold_keys(lane, letter)
            return False
        self.done += 1
        log.info("dead letter %s: %s done", letter.id, letter.request)
        note = Note(lane.owner.buffer, time.time(), commit.position)
        if letter.request == "discard":
            note = replace(note, discarded={letter.id: letter.entry_id})
        else:
            note = replace(note, also=frozenset({letter.id}))
        self._redis.calls([commit_notes.write(lane.lane, note)])
        if letter.holds:
            # Not without keys: a clash has the id of another transaction, which may be parked.
            self._release_keys(lane, letter)
        return letter.holds

    def _commit(self, owner: Ownership, letter: DeadLetter) -> Commit | None:
        """Commit what was requested; None if that failed, or ended the session too often."""
        times = self._session_ends.pop(letter.id, 0)
        # One crash is no evidence: the server may have stopped for another reason.
        if times >= max(self._attempts, 2):
            reason = Reason("crashed its PostgreSQL session on every attempt", ENDS_SESSION_STATE)
            self._writer.reject(owner, letter, reason)
            return None
        try:
            return self._writer.carry_out(owner, letter)
        except DatabaseUnavailable:
            if not self._database.alive:
                # With the session alive, it is the server that takes no work.
                self._session_ends[letter.id] = times + 1
            raise

    def _hold_keys(self, lane: OwnedLane, letter: DeadLetter) -> None:
        """A dead letter that was adopted from another buffer is in no line of this one yet."""
        members = [waiting_lines.member(key, letter.entry_id, letter.id) for key in letter.keys]
        places = ("ZADD", lane.lane.blocked, *(part for m in members for part in (0, m)))
        try:
            self._redis.call(*places)
        except RedisRefused as refused:
            _rebuild_later(lane, refused)
        lane.parking.hold_line()

    def _release_keys(self, lane: OwnedLane, letter: DeadLetter) -> None:
        leaving = [(letter.id, letter.entry_id, letter.keys)]
        try:
            parked.release(self._redis, lane.lane, leaving, 0.0)
        except RedisRefused as refused:
            _rebuild_later(lane, refused)
        lane.parking.retry_soon()


def _rebuild_later(lane: OwnedLane, refused: RedisRefused) -> None:
    """Redis is full: the lines are rebuilt from the dead letters when lanes are next taken."""
    if refused.code != "OOM":
        raise refused
    lane.check_again()
