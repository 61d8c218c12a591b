"""Tells whether a pooler gives the server session of a connection to other clients as well.

In session mode a pooler, such as PgBouncer, leaves a server session to one client until it
disconnects, which is as good as none. In transaction and statement mode it does not (rule 6).
"""

from __future__ import annotations

from dataclasses import replace

from processor.config.settings import Database as Settings
from processor.connections.postgres_connection import PostgresConnection
from processor.errors import DatabaseUnavailable
from processor.telemetry.progress import Progress

#: A pooler that other clients keep busy may give the two connections different sessions by chance.
_ROUNDS = 3

_PID = "SELECT pg_catalog.pg_backend_pid()"


def is_between(connection: PostgresConnection, pid: int) -> bool:
    """Return whether something answers in place of the backend with this process id."""
    return pid != connection.reported_pid


def is_shared(connection: PostgresConnection, settings: Settings, pid: int) -> bool:
    """Return whether another client gets the backend `pid` of an idle connection, or it another.

    Nothing is changed on a session that may be another client's. Raises DatabaseUnavailable.
    """
    patience = settings.connect_timeout
    options = replace(settings, dsn=connection.dsn_here)
    other = PostgresConnection(options, Progress(), application="processor pooler check")
    try:
        other.open({}, patience)
        # Statement mode refuses a transaction.
        if other.run(_PID, deadline=patience)[0][0] == pid:
            return True
        for _ in range(_ROUNDS):
            # The transaction keeps its session, so that the pooler cannot give it to the first.
            if other.run(f"BEGIN;{_PID}", deadline=patience)[0][0] == pid:
                return True
            while_taken = connection.run(_PID)[0][0]
            other.run("ROLLBACK", deadline=patience)
            # A pooler prefers the session that was returned last.
            if while_taken != pid or connection.run(_PID)[0][0] != pid:
                return True
        return False
    except DatabaseUnavailable as error:
        if not connection.alive:
            raise
        raise DatabaseUnavailable(
            f"the pooler at {connection.address} gave no second session, which shows its mode:"
            f" {error}", hint="let its pool have one session more",
        ) from None  # fmt: skip
    finally:
        other.close()
