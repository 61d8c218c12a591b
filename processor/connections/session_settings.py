"""The settings that a PostgreSQL session pins when it is opened, as SQL for `postgres_session`.

With them, values and their text mean the same whatever the defaults of role, database and server
are. A writing session also ends automatically when its owner is frozen (rules 4 and 6).
"""

from __future__ import annotations

import re

from processor.config.settings import Database
from processor.connections.sql_literals import named, quoted

#: The first query of a session: version, whether the server is a standby, whether it is read-only,
#: process id and start of the backend, system identifier, timeline (0 on a standby, where an
#: ordinary role cannot read it).
LOOK = (
    "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(),"
    " pg_catalog.current_setting('default_transaction_read_only')::boolean,"
    " pg_catalog.pg_backend_pid(),"
    " (SELECT backend_start::text FROM pg_catalog.pg_stat_activity"
    " WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()),"
    " (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),"
    " CASE WHEN pg_catalog.pg_is_in_recovery() THEN '0'"
    " ELSE pg_catalog.\"left\"("
    "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END"
)

_PATH = "pg_catalog.current_setting('search_path')"
#: The search_path of the role or database. If neither has one, that of PostgreSQL without "$user":
#: the role that we print has the name of our schema. A pg_catalog behind other schemas is put
#: first, so that no operator of another user is called in place of PostgreSQL's (rule 92).
_OWN_PATH = (
    f"CASE WHEN {_PATH} OPERATOR(pg_catalog.=) '\"$user\", public' THEN 'public'"
    f" WHEN {_PATH} OPERATOR(pg_catalog.~~) '%_pg_catalog%'"
    f" THEN pg_catalog.concat('pg_catalog, ', {_PATH}) ELSE {_PATH} END"
)

# It ends a session in the middle of a batch, and PostgreSQL 14 to 16 do not have it.
_TRANSACTION_TIMEOUT = (
    "SELECT pg_catalog.set_config('transaction_timeout', '0', false)"
    " WHERE pg_catalog.current_setting('server_version_num')::pg_catalog.int4"
    " OPERATOR(pg_catalog.>=) 170000;"
)


def reading(settings: Database) -> str:
    """Return the settings of a read-only session; psycopg2 can parse its intervals."""
    return _set(_both(settings) | {
        "IntervalStyle": quoted("postgres"), "default_transaction_read_only": quoted("on"),
    })  # fmt: skip


def writing(settings: Database) -> str:
    """Return the settings of the session that owns lanes; the result is its process id."""
    return _set(pinned(settings)) + " SELECT pg_catalog.pg_backend_pid()"


def restoring(settings: Database) -> str:
    """Return what makes the session that owns lanes what it was, within a transaction (rule 12).

    Registered statements may call functions that change it. What a transaction cannot undo is left:
    advisory locks of the session and statements that were prepared.
    """
    return (
        "RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;"
        f"{_set(pinned(settings))}CLOSE ALL;UNLISTEN *;DISCARD TEMP;DISCARD SEQUENCES;"
    )


def pinned(settings: Database) -> dict[str, str]:
    """Return the settings of the session that owns lanes, each as an expression."""
    takeover = _duration(settings.takeover)
    return _both(settings) | {
        "IntervalStyle": quoted("iso_8601"),
        "lock_timeout": _duration(settings.lock_timeout),
        "idle_session_timeout": takeover,
        "idle_in_transaction_session_timeout": takeover,
        "client_connection_check_interval": quoted("1s"),
        "row_security": quoted("on"),
        # A NULL in an array would be the text NULL.
        "array_nulls": quoted("on"),
        "xmloption": quoted("content"),
    }


def _both(settings: Database) -> dict[str, str]:
    names = [name.strip() for name in settings.search_path.split(",") if name.strip()]
    names.sort(key=lambda name: name != "pg_catalog")
    path = ", ".join(
        name if re.fullmatch("[a-z_][a-z0-9_]*", name) else named(name.strip('"'))
        for name in names
    )
    return {
        "DateStyle": quoted("ISO, YMD"),
        "TimeZone": quoted("UTC"),
        "standard_conforming_strings": quoted("on"),
        "extra_float_digits": quoted("1"),
        "search_path": quoted(path) if path else _OWN_PATH,
        "statement_timeout": _duration(settings.statement_timeout),
        # A standby refuses queries that are to be serializable.
        "default_transaction_isolation": quoted("read committed"),
    }


def _duration(seconds: float) -> str:
    return f"'{int(seconds * 1000)}ms'"


def _set(settings: dict[str, str]) -> str:
    calls = ", ".join(
        f"pg_catalog.set_config('{name}', {value}, false)" for name, value in settings.items()
    )
    return f"SELECT {calls};{_TRANSACTION_TIMEOUT}"
