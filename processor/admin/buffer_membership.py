"""To which buffer a dead letter belongs: to the one that the settings lead to, or to another.

Several sites may write into one database. What is asked of a dead letter is carried out by the
processors of its own buffer and by nobody else (rule 1). So a request that nobody would carry out
is refused; a letter of a buffer that is gone for ever can be taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from processor.admin import overview
from processor.admin.sessions import OperatorSessions
from processor.buffer import registry
from processor.cli import output
from processor.connections.postgres_session import PostgresSession
from processor.errors import ProcessorError, RedisRefused, RedisUnavailable
from processor.ledger import lane_rows
from processor.ledger.dead_letters import DeadLetter


class Elsewhere(ProcessorError):
    """The dead letter belongs to another buffer."""


class BufferMembership:
    """The buffer where requests are carried out, and the one that letters are taken over from."""

    def __init__(self, servers: OperatorSessions, gone: str | None = None) -> None:
        self.servers = servers
        self.gone = gone
        self._ready: set[str] = set()

    @cached_property
    def here(self) -> str:
        """The buffer of the settings. Raises RedisUnavailable, as nobody else knows it."""
        try:
            here = _here(self.servers)
        except RedisUnavailable as error:
            raise RedisUnavailable(
                f"{error}; nothing was asked", hint="it knows whose dead letters are decided here"
            ) from None
        if here is None:
            raise Elsewhere(
                "Redis knows no buffer, so nobody would carry out what is asked of dead letters",
                hint="start its processor, or see redis.url and namespace",
            )
        return here

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a request for this letter may be recorded."""
        return letter.buffer in (self.here, self.gone)

    def refuse(self, database: PostgresSession, letter: DeadLetter) -> None:
        """Raises Elsewhere for a letter that no processor of this buffer decides."""
        raise Elsewhere(
            f"{letter.id} belongs to the buffer {letter.buffer} ({_last_seen(database, letter)}):"
            f" no processor of this one, {self.here}, will carry it out",
            hint="ask with the settings of that site, or, if that buffer is gone for ever, take"
            f" the letter over with --adopt {letter.buffer}",
        )

    def make_room(self, database: PostgresSession, letter: DeadLetter) -> None:
        """Have the lane of a letter that is taken over drained, if nobody writes to it (rule 7).

        Raises Elsewhere if its buffer is not gone: what waits there behind it would be stranded.
        """
        if letter.buffer == self.here or letter.lane in self._ready:
            return
        settings = self.servers.settings
        if lane_rows.is_drained(database, settings.namespace, letter.buffer):
            raise Elsewhere(f"the buffer {letter.buffer} is not gone: a processor drains it now",
                            hint="ask with the settings of its site")
        with self.servers.redis() as redis:
            if letter.lane not in overview.lane_names(redis, settings):
                redis.call(*registry.register(settings.namespace, [letter.lane]))
        self._ready.add(letter.lane)


def known(servers: OperatorSessions) -> Callable[[DeadLetter], bool | None]:
    """Whether a letter is of this buffer; None for all, and a message, if Redis cannot be asked."""
    try:
        here = _here(servers)
    except (RedisUnavailable, RedisRefused) as error:
        output.message(f"{error}; which dead letters are of this buffer is not known")
        return lambda letter: None
    return lambda letter: letter.buffer == here


def _here(servers: OperatorSessions) -> str | None:
    with servers.redis() as redis:
        return registry.written_identity(redis, servers.settings.namespace)


def _last_seen(database: PostgresSession, letter: DeadLetter) -> str:
    rows = database.run(
        "SELECT site, seen_at FROM processor.lane"
        f" WHERE buffer = '{letter.buffer}' ORDER BY seen_at DESC LIMIT 1"
    )
    return f"site {rows[0][0]}, last seen {output.cell(rows[0][1])}" if rows else "never seen"
