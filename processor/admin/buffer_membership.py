"""The buffer to which a dead letter belongs: that of the settings, or another one.

Several sites may write into one database, and the processors of a buffer carry out only requests
for its own dead letters (rule 1). So a request for a dead letter of another buffer is refused,
since no processor here would carry it out; unless that buffer is gone and the operator adopts it.
"""

from __future__ import annotations

from functools import cached_property

from processor.admin.sessions import OperatorSessions
from processor.buffer import observation, registry
from processor.connections.postgres_session import PostgresSession
from processor.errors import ProcessorError, RedisUnavailable
from processor.ledger import lane_rows
from processor.ledger.dead_letters import DeadLetter
from processor.telemetry.status import timestamp


class OtherBuffer(ProcessorError):
    """The dead letter belongs to another buffer."""


def this_buffer(sessions: OperatorSessions) -> str | None:
    """The identity of the settings' buffer; None if it has none yet.

    Raises RedisUnavailable and RedisRefused.
    """
    with sessions.redis() as redis:
        return registry.written_identity(redis, sessions.settings.namespace)


class BufferMembership:
    """The buffer whose processors carry out requests, and the one whose letters it adopts."""

    def __init__(self, sessions: OperatorSessions, adopted: str | None = None) -> None:
        self.sessions = sessions
        self.adopted = adopted
        self._registered: set[str] = set()

    @cached_property
    def buffer(self) -> str:
        """The buffer of the settings. Raises RedisUnavailable, as only Redis knows it."""
        try:
            buffer = this_buffer(self.sessions)
        except RedisUnavailable as error:
            raise RedisUnavailable(
                f"{error}; nothing was requested",
                hint="only Redis knows which dead letters are decided here",
            ) from None
        if buffer is None:
            raise OtherBuffer(
                "Redis holds no buffer, so no processor would carry out the request",
                hint="start a processor on it, or check redis.url and namespace",
            )
        return buffer

    def accepts(self, letter: DeadLetter) -> bool:
        """Whether a request for this dead letter may be recorded."""
        return letter.buffer in (self.buffer, self.adopted)

    def refuse(self, database: PostgresSession, letter: DeadLetter) -> None:
        """Raises OtherBuffer for a dead letter that no processor of this buffer decides."""
        raise OtherBuffer(
            f"{letter.id} belongs to buffer {letter.buffer} ({_last_seen(database, letter)}):"
            f" no processor of this buffer, {self.buffer}, would carry out the request",
            hint="use the settings of that site, or, if that buffer no longer exists, adopt the"
            f" dead letter with --adopt {letter.buffer}",
        )

    def register_lane(self, database: PostgresSession, letter: DeadLetter) -> None:
        """Have the lane of an adopted dead letter drained, even if it has no entries (rule 7).

        Raises OtherBuffer if a processor still drains the adopted buffer: the entries that wait
        there behind this dead letter would never be released.
        """
        if letter.buffer == self.buffer or letter.lane in self._registered:
            return
        settings = self.sessions.settings
        if lane_rows.is_drained(database, settings.namespace, letter.buffer):
            raise OtherBuffer(
                f"buffer {letter.buffer} still exists: a processor is draining it",
                hint="use the settings of its site",
            )
        with self.sessions.redis() as redis:
            if letter.lane not in observation.lane_names(redis, settings):
                redis.call(*registry.register(settings.namespace, [letter.lane]))
        self._registered.add(letter.lane)


def _last_seen(database: PostgresSession, letter: DeadLetter) -> str:
    rows = database.run(
        "SELECT site, extract(epoch FROM seen_at)::float8 FROM processor.lane"
        f" WHERE buffer = '{letter.buffer}' ORDER BY seen_at DESC LIMIT 1"
    )
    return f"site {rows[0][0]}, last seen {timestamp(rows[0][1])}" if rows else "never seen"
