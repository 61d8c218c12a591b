"""Which database a buffer is drained into: one and the same, or effects would be in two (rule 94).

The first processor binds the buffer. A server keeps its system identifier through a promotion and
in a restored backup, and a database keeps its oid when it is renamed; one that was dropped and
restored keeps its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from processor.buffer import registry
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import WrongDatabase

_DATABASE = (
    "SELECT oid::text, datname::text FROM pg_catalog.pg_database"
    " WHERE datname = pg_catalog.current_database()"
)


@dataclass(frozen=True, slots=True)
class DatabaseName:
    """The oid and the name of a database."""

    oid: str
    name: str


def name_of(database: PostgresSession) -> DatabaseName:
    """Return oid and name of the database of a session, which do not change while it lasts."""
    return DatabaseName(*database.run(_DATABASE)[0])


def check(
    database: PostgresSession, named: DatabaseName, redis: RedisConnection, namespace: str
) -> bool:
    """Bind the buffer to this database if it is bound to none. Raises WrongDatabase.

    Return whether it is bound now.
    """
    oid, name = named.oid, named.name
    ours = f"{database.system} {oid} {name}"
    bound = registry.bound_database(redis, namespace, ours)
    if bound is None:
        return False
    system, _, rest = bound.partition(" ")
    bound_oid, _, bound_name = rest.partition(" ")
    if system == database.system and (bound_oid == oid or bound_name == name):
        return True
    raise WrongDatabase(
        f"the buffer {namespace} is drained into database {bound_name} of the server with system"
        f" identifier {system}, and this is {name} of {database.system}",
        hint="set another namespace, or the dsn of that database; if it was moved here together"
        f" with its schema processor, stop all processors and delete the key {namespace}:database"
        " in Redis",
    )
