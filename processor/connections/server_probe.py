"""Whether a server still works on a call that may take long, asked on a connection of its own.

A transaction may allow its statements more time than `database.call_timeout`. That is no reason to
wait as long for a server that is gone, or for a statement that stopped (rule 18).
"""

from __future__ import annotations

import time
from dataclasses import replace

from processor.config.settings import Database as Settings
from processor.connections.postgres_connection import PostgresConnection
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError, DatabaseUnavailable
from processor.telemetry.progress import Progress


class LongCall:
    """The deadline of one call, put off for as long as the server is found to work on it.

    The reply to a string of statements arrives only after the last, so what runs is asked for:
    statements with a time limit of their own set application_name.
    """

    def __init__(self, session: PostgresSession, settings: Settings, longest: float) -> None:
        """`longest` is the longest time limit of a statement in the call, in seconds."""
        now = time.monotonic()
        self._session = session
        self._settings = settings
        self._most = longest + settings.call_timeout
        self._asked = self._proven = self._began = now
        self._statement = ""

    @property
    def deadline(self) -> float:
        """When to give up, unless the server is found to work on the call (monotonic seconds)."""
        return min(self._proven + self._settings.call_timeout, self._began + self._most)

    @property
    def look_at(self) -> float:
        """When to look for the server again (monotonic seconds)."""
        return min(self._asked + self._settings.call_timeout / 3, self.deadline)

    def look(self) -> bool:
        """Ask whether the server works on the call; return whether to wait for it longer."""
        now = self._asked = time.monotonic()
        if now >= self.deadline:
            return False
        statement = self._running(self.deadline - now)
        if statement is not None:
            self._proven = now
            if statement != self._statement:
                self._statement, self._began = statement, now
        return True

    def _running(self, patience: float) -> str | None:
        """Return the name of the statement that runs; None if none is known to run."""
        # Keepalives do not tell: the kernel of the peer, or a proxy, answers for a dead process.
        options = replace(self._settings, dsn=self._session.dsn_here)
        probe = PostgresConnection(options, Progress(), application="processor probe")
        try:
            probe.open({}, min(patience, self._settings.connect_timeout))
            state, statement = probe.run(self._session.activity, deadline=patience)[0]
        except DatabaseUnavailable as error:
            # That all connections are taken is an answer too.
            return self._statement if "FATAL" in str(error) else None
        except (DatabaseError, IndexError):
            return None
        finally:
            probe.close()
        # Not "active" alone: with track_activities off the state is "disabled".
        return None if str(state).startswith("idle") else str(statement)
