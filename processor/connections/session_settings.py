"""The settings that a PostgreSQL session pins when it is opened, as SQL for `postgres_session`.

With them, values and their text mean the same whatever the defaults of role, database and server
are. A writing session also ends automatically when its owner is frozen (rules 4 and 6).
"""

from __future__ import annotations

from processor.config.settings import Database

#: The first query of a session: version, whether the server is a standby, whether it is read-only,
#: process id and start of the backend, system identifier, timeline (0 on a standby, where an
#: ordinary role cannot read it).
LOOK = (
    "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(),"
    " pg_catalog.current_setting('default_transaction_read_only')::boolean,"
    " pg_catalog.pg_backend_pid(),"
    " (SELECT backend_start::text FROM pg_catalog.pg_stat_activity"
    " WHERE pid = pg_catalog.pg_backend_pid()),"
    " (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),"
    " CASE WHEN pg_catalog.pg_is_in_recovery() THEN '0'"
    " ELSE pg_catalog.\"left\"("
    "pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END"
)


def reading(settings: Database) -> str:
    """Return the settings of a read-only session; psycopg2 can parse its intervals."""
    return (
        _both(settings) + " SET IntervalStyle = 'postgres'; SET default_transaction_read_only = on"
    )


def writing(settings: Database) -> str:
    """Return the settings of the session that owns lanes; the result is its process id."""
    takeover = int(settings.takeover * 1000)
    return (
        f"{_both(settings)} SET IntervalStyle = 'iso_8601';"
        f" SET lock_timeout = {int(settings.lock_timeout * 1000)};"
        f" SET idle_session_timeout = {takeover};"
        f" SET idle_in_transaction_session_timeout = {takeover};"
        " SET client_connection_check_interval = 1000;"
        " SET default_transaction_isolation = 'read committed'; SET row_security = on;"
        " SELECT pg_catalog.pg_backend_pid()"
    )


def _both(settings: Database) -> str:
    names = [name.strip() for name in settings.search_path.split(",") if name.strip()]
    path = ", ".join('"' + name.strip('"').replace('"', '""') + '"' for name in names)
    return (
        "SET DateStyle = 'ISO, YMD'; SET TimeZone = 'UTC'; SET standard_conforming_strings = on;"
        f" SET extra_float_digits = 1; SET search_path = {path};"
        f" SET statement_timeout = {int(settings.statement_timeout * 1000)};"
    )
