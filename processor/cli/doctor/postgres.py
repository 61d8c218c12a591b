"""`doctor`, PostgreSQL: the session, the role, the schema, and what a commit is worth."""

from __future__ import annotations

from collections.abc import Iterator

from processor.cli import output
from processor.cli.doctor.finding import FAIL, OK, WARN, Finding
from processor.config import addresses
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted, table
from processor.errors import RightsMissing, SchemaMissing
from processor.ledger import dead_letters, schema

_ROOM = 5
_STRONG = ("pg_execute_server_program", "pg_write_server_files", "pg_read_server_files")


def examine(
    database: PostgresSession, settings: Settings, identity: str | None
) -> Iterator[Finding]:
    """All checks of PostgreSQL, on a session that was opened as the drain opens its own."""
    version = database.server_version
    yield _finding("session", OK, f"PostgreSQL {version // 10000}, writable, no pooler between")
    ours = list(_schema(database))
    yield from ours
    yield _role(database)
    yield from _tables(database, settings)
    yield from _commit(database)
    yield _timeouts(database, settings)
    yield _encoding(database)
    yield _connections(database)
    yield _link(database)
    if identity is not None and all(each.level == OK for each in ours):
        yield _dead_letters(database, identity)


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("postgresql", check, level, found, remedy)


def _schema(database: PostgresSession) -> Iterator[Finding]:
    try:
        schema.check(database)
        yield _finding("schema", OK, f"version {schema.VERSION}")
        schema.check_rights(database)
        yield _finding("rights", OK, "the role may work with the schema processor")
    except SchemaMissing as error:
        yield _finding("schema", FAIL, str(error.args[0]), error.hint)
    except RightsMissing as error:
        yield _finding("rights", FAIL, str(error.args[0]), error.hint)


def _role(database: PostgresSession) -> Finding:
    row = database.run(
        "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
        " FROM pg_roles WHERE rolname = current_user"
    )[0]
    name, superuser, *powers = row
    remedy = "drain with the role of `processor print schema`"
    if superuser:
        return _finding("role", WARN, f"{name} is a superuser", remedy)
    words = ("create databases", "create roles", "replicate", "bypass row security")
    may = [word for word, has in zip(words, powers, strict=True) if has]
    may += [role for role in _STRONG
            if _one(database, f"SELECT pg_has_role('{role}', 'MEMBER')")]
    if may:
        return _finding("role", WARN, f"{name} may {', '.join(may)}", remedy)
    return _finding("role", OK, f"{name} has no rights beyond its tables")


def _tables(database: PostgresSession, settings: Settings) -> Iterator[Finding]:
    """The tables that transactions may name, as far as the settings say which."""
    for name in settings.database.tables:
        known = quoted(table(name))
        if not _one(database, f"SELECT to_regclass({known}) IS NOT NULL"):
            yield _finding("tables", FAIL, f"{name} is not there",
                           "create it, or take it out of database.tables")
        elif not _one(database, f"SELECT has_table_privilege({known}, 'INSERT')"):
            yield _finding("tables", WARN, f"the role may not insert into {name}", "grant it")


def _commit(database: PostgresSession) -> Iterator[Finding]:
    if _one(database, "SELECT current_setting('fsync')") == "off":
        yield _finding("fsync", FAIL, "fsync off: a crash of the machine may destroy the database",
                       "set fsync on")
    level = _one(database, "SELECT current_setting('synchronous_commit')")
    if level == "off":
        yield _finding("synchronous_commit", WARN, "off: the last commits may be lost in a crash,"
                       " after they left the buffer", "set it on for the role that drains")
    else:
        yield _finding("synchronous_commit", OK, str(level))


def _timeouts(database: PostgresSession, settings: Settings) -> Finding:
    names = ("statement_timeout", "lock_timeout", "idle_session_timeout",
             "idle_in_transaction_session_timeout")
    values = {name: str(_one(database, f"SELECT current_setting('{name}')")) for name in names}
    unset = [name for name, value in values.items() if value == "0"]
    if unset:
        return _finding("timeouts", FAIL, f"not in force: {', '.join(unset)}",
                        "something between here and PostgreSQL drops SET: connect directly")
    return _finding("timeouts", OK, f"statement {values['statement_timeout']}, lock"
                    f" {values['lock_timeout']}, takeover {settings.database.takeover:g}s")


def _encoding(database: PostgresSession) -> Finding:
    encoding = _one(database, "SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        return _finding("encoding", WARN, f"{encoding}: text beyond it is refused as poison",
                        "use a database with encoding UTF8")
    return _finding("encoding", OK, "UTF8")


def _connections(database: PostgresSession) -> Finding:
    most, used = database.run(
        "SELECT current_setting('max_connections')::int"
        " - current_setting('superuser_reserved_connections')::int,"
        " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
    )[0]
    if most - used < _ROOM:
        return _finding("connections", WARN, f"{used} of {most} are taken",
                        "raise max_connections, or pool the others")
    return _finding("connections", OK, f"{used} of {most} are taken")


def _link(database: PostgresSession) -> Finding:
    host, encrypted = database.run(
        "SELECT host(inet_server_addr()),"
        " (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())"
    )[0]
    if host is None or encrypted:
        return _finding("link", OK, "TLS" if encrypted else "a socket of this machine")
    if addresses.loopback(f"[{host}]:1" if ":" in host else f"{host}:1"):
        return _finding("link", OK, "loopback")
    return _finding("link", WARN, f"unencrypted to {host}", "add sslmode=verify-full to the dsn")


def _dead_letters(database: PostgresSession, identity: str) -> Finding:
    count = dead_letters.count_open(database, identity)
    if count:
        return _finding("dead letters", WARN, f"{output.count(count, 'dead letter')} to decide on",
                        "`processor dead list`")
    return _finding("dead letters", OK, "none")


def clock(database: PostgresSession) -> float:
    """The time by the clock of PostgreSQL, Unix seconds."""
    return float(database.run("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])


def _one(database: PostgresSession, sql: str) -> object:
    return database.run(sql)[0][0]
