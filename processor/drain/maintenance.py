"""What a pass does now and then: carry out operators' requests, prune the ledger, count the dead.

The question for requests is also the call with which an idle owner touches the server, so that its
session is not taken for a frozen one (rule 4).
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace

from processor.apply.committer import Commit
from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.buffer import commit_notes, delayed, parked, stream
from processor.buffer.commit_notes import Note
from processor.buffer.overlay import Overlay
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection, checked
from processor.drain.backlog import Backlog
from processor.errors import (
    ENDS_SESSION_STATE,
    FENCED_STATE,
    DatabaseError,
    DatabaseUnavailable,
    RedisRefused,
)
from processor.ledger import dead_letters, outcomes
from processor.ledger.dead_letters import DeadLetter, Reason
from processor.ledger.lane_rows import Ownership
from processor.ownership.owned_lane import OwnedLane
from processor.ownership.owners import Owners
from processor.telemetry import metrics

log = logging.getLogger("processor.drain")

_LETTERS = 100
_PRUNED = 5_000
_AT_ONCE = 500
_PRUNE_EVERY = 60.0
#: Dead letters are counted this often, and when one came or went here.
_COUNT_EVERY = 10.0
_COUNT_SOON = 1.0
#: Operators' requests are asked for this often, idle and busy.
_ASK = 1.0
_ASK_BUSY = 5.0


class Maintenance:
    """Periodic work of one processor; all of it may be late, none of it may be lost."""

    def __init__(
        self, settings: Settings, database: PostgresSession, redis: RedisConnection, owners: Owners,
        burial: DeadLetterWriter, outlook: Backlog,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._database = database
        self._redis = redis
        self._owners = owners
        self._burial = burial
        self._outlook = outlook
        self._overlay = Overlay(settings)
        self._touched = self._pruned = self._counted = float("-inf")
        self._changes = self._counted_changes = 0.0
        self._ended: dict[str, int] = {}

    def run(self, now: float, *, busy: bool) -> None:
        """Do what is due at `now` (monotonic); `busy` if batches keep the session warm anyway."""
        if not self._owners.owned:
            return
        # Over a long link each question takes the time of a batch.
        often = _ASK_BUSY if busy else min(_ASK, self._settings.database.takeover / 3) * 0.9
        if now - self._touched >= often:
            self._touched = now
            self._requests()
        self._count(now)
        if now - self._pruned >= _PRUNE_EVERY:
            self._pruned = now
            for lane in self._owners.owned:
                self._prune(lane)

    def _count(self, now: float) -> None:
        changes = self._changes + metrics.value("dead")
        often = _COUNT_EVERY if changes == self._counted_changes else _COUNT_SOON
        if now - self._counted >= often:
            self._counted, self._counted_changes = now, changes
            letters = dead_letters.count_open(self._database, self._owners.buffer)
            self._outlook.dead_letters = letters
            metrics.gauge("dead_letters", letters)

    def _requests(self) -> None:
        lanes = {lane.name: lane for lane in self._owners.owned}
        letters = dead_letters.requests(self._database, self._owners.buffer, list(lanes), _LETTERS)
        for letter in letters:
            self._carry_out(lanes[letter.lane], letter)

    def _carry_out(self, lane: OwnedLane, letter: DeadLetter) -> None:
        if lane.owner is None:
            return
        try:
            commit = self._fulfilled(lane.owner, letter)
        except DatabaseError as error:
            if error.sqlstate == FENCED_STATE:
                lane.fenced()
                return
            log.warning("dead letter %s: %s put off: %s", letter.id, letter.request, error)
            return
        if commit is None:
            log.warning("dead letter %s: %s failed, it stays", letter.id, letter.request)
            if letter.holds:
                self._hold(lane, letter)
            return
        self._changes += 1
        log.info("dead letter %s: %s done", letter.id, letter.request)
        note = Note(lane.owner.buffer, time.time(), commit.position)
        if letter.request == "discard":
            note = replace(note, discarded={letter.id: letter.entry_id})
        else:
            note = replace(note, also=frozenset({letter.id}))
        self._redis.calls([commit_notes.write(lane.lane, note)])
        if letter.holds:
            # By its id a clash would take the transaction that had the id before.
            self._release(lane, letter)

    def _hold(self, lane: OwnedLane, letter: DeadLetter) -> None:
        """One that was taken over from another buffer stands in no line of this one yet."""
        members = [parked.member(key, letter.entry_id, letter.id) for key in letter.keys]
        places = ("ZADD", lane.lane.blocked, *(part for m in members for part in (0, m)))
        try:
            self._redis.call(*places)
        except RedisRefused as refused:
            self._lines_later(lane, refused)
        lane.parking.hold_line()

    @staticmethod
    def _lines_later(lane: OwnedLane, refused: RedisRefused) -> None:
        """A full Redis: lines are made to agree with dead letters when lanes are next looked at."""
        if refused.code != "OOM":
            raise refused
        lane.check_again()

    def _release(self, lane: OwnedLane, letter: DeadLetter) -> None:
        leaving = [(letter.id, letter.entry_id, letter.keys)]
        try:
            parked.release(self._redis, lane.lane, leaving, time.time())
        except RedisRefused as refused:
            self._lines_later(lane, refused)
        lane.parking.retry_soon()
        self._outlook.forget()

    def _fulfilled(self, owner: Ownership, letter: DeadLetter) -> Commit | None:
        """Try it again, but not for ever if that ends the session each time."""
        times = self._ended.pop(letter.id, 0)
        # Once proves nothing: it was in hand when the server ended.
        if times >= max(self._settings.retry.attempts, 2):
            reason = Reason("it ended its session each time it was tried", ENDS_SESSION_STATE)
            self._burial.reject(owner, letter, reason)
            return None
        try:
            return self._burial.carry_out(owner, letter)
        except DatabaseUnavailable:
            if not self._database.alive:
                # Else it is the server that takes no work.
                self._ended[letter.id] = times + 1
            raise

    def _prune(self, lane: OwnedLane) -> None:
        """Remove ledger rows that are old and whose entries are known settled (rule 23)."""
        if lane.owner is None:
            return
        keys = lane.lane
        head, waiting, mark = checked(self._redis.calls([
            stream.read(keys, "-", 1), ("HLEN", keys.parked), ("GET", keys.pruned)
        ]))  # fmt: skip
        oldest = int(head[0][0].partition(b"-")[0]) if head else sys.maxsize
        if lane.doubtful_until is not None and (
            waiting or oldest <= lane.doubtful_until
            or delayed.suspects(self._redis, keys, lane.doubtful_until)
        ):
            return  # Some of what Redis brought back is not judged yet.
        rows = self._forgettable(lane.owner, lane, oldest)
        newest = max([int(mark or 0), lane.doubtful_until or 0, *(at for _, at in rows)])
        # Redis first: one that is restored to before this moment must not know of it.
        if isinstance(self._redis.calls([("SET", keys.pruned, newest)])[0], RedisRefused):
            return
        lane.doubtful_until = None
        for start in range(0, len(rows), _AT_ONCE):
            gone = [i for i, _ in rows[start : start + _AT_ONCE]]
            self._database.run(outcomes.prune(lane.owner, gone))
        if len(rows) == _PRUNED:
            self._pruned = float("-inf")  # There are more: go on in the next pass.
        if rows:
            log.info("lane %s: pruned %d rows of the ledger", keys.name, len(rows))

    def _forgettable(self, owner: Ownership, lane: OwnedLane, oldest: int) -> list[tuple[str, int]]:
        retention = self._settings.ledger.retention
        rows = outcomes.prunable(self._database, owner, retention, oldest, _PRUNED)
        waiting: set[str] = set()
        for start in range(0, len(rows), _AT_ONCE):
            ids = [i for i, _ in rows[start : start + _AT_ONCE]]
            waiting |= parked.has_bodies(self._redis, lane.lane, ids)
            # Forgotten by the ledger, what a reader still merges would be merged twice.
            waiting |= self._overlay.kept(self._redis, ids)
        return [row for row in rows if row[0] not in waiting]
