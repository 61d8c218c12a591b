"""Checks of the settings that PostgreSQL's sessions of the processor have, or do not have."""

from __future__ import annotations

from collections.abc import Iterator

from processor.admin.findings import OK, WARN, Finding
from processor.connections.postgres_session import PostgresSession

#: Limits, which the processor has settings of its own for.
_LIMITS = frozenset({
    "statement_timeout", "lock_timeout", "idle_session_timeout", "transaction_timeout",
    "idle_in_transaction_session_timeout",
})  # fmt: skip

#: What role or database set, where our session has set something else: name, theirs, ours.
_OVERRULED = """
SELECT s.name, pg_catalog.concat(s.reset_val, s.unit), pg_catalog.concat(s.setting, s.unit)
  FROM pg_catalog.pg_settings s
 WHERE s.source = 'session' AND s.setting <> s.reset_val AND pg_catalog.lower(s.name) IN (
       SELECT pg_catalog.lower(pg_catalog.split_part(c.setting, '=', 1))
         FROM pg_catalog.pg_db_role_setting r, pg_catalog.unnest(r.setconfig) AS c (setting)
        WHERE r.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d
                                     WHERE d.datname = pg_catalog.current_database()))
          AND r.setrole IN (0, (SELECT u.oid FROM pg_catalog.pg_roles u
                                 WHERE u.rolname = session_user)))
 ORDER BY 1
"""


def settings(database: PostgresSession) -> Iterator[Finding]:
    """Compare what role and database set with what is in force; the session is pinned."""
    rows = database.run(_OVERRULED)
    found = [f"{name} = {theirs} (ours is {ours})" for name, theirs, ours in rows
             if name not in _LIMITS]
    if found:
        yield Finding("postgresql", "role settings", WARN,
                      f"of the role or database, not in force: {'; '.join(found)}",
                      "trigger functions and registered statements do not see it: give those that"
                      " need it `ALTER FUNCTION name SET ...`; for search_path, leave"
                      " database.search_path empty")
    limits = [f"{name} = {theirs} (ours is {ours})" for name, theirs, ours in rows
              if name in _LIMITS]
    if limits or not found:
        why = f"limits of ours instead of {'; '.join(limits)}" if limits else "none is overruled"
        yield Finding("postgresql", "role settings", OK, why)
    ((replication_role,),) = database.run(
        "SELECT pg_catalog.current_setting('session_replication_role')"
    )
    if replication_role != "origin":
        yield Finding("postgresql", "triggers", WARN,
                      f"session_replication_role is {replication_role}: triggers do not fire, and"
                      " foreign keys are not checked", "reset it for the role and the database")
