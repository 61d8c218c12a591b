"""Checks of PostgreSQL: the session, the role, the schema, and the durability of a commit."""

from __future__ import annotations

from collections.abc import Iterator

from processor.admin.findings import FAIL, OK, WARN, Finding
from processor.admin.wording import count
from processor.cli.doctor import session
from processor.config import addresses
from processor.config.settings import Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.sql_literals import quoted, table
from processor.errors import RightsMissing, SchemaMissing
from processor.ledger import dead_letters, schema, stream_losses

#: Fewer free connections than this are a warning.
_FREE = 5
#: Roles that reach beyond the database into the machine.
_STRONG = ("pg_execute_server_program", "pg_write_server_files", "pg_read_server_files")


def examine(
    database: PostgresSession, settings: Settings, identity: str | None
) -> Iterator[Finding]:
    """All checks of PostgreSQL, on a session with the same options as the drain's."""
    version = database.server_version
    way = "through a pooler in session mode" if database.pooled else "no pooler"
    yield _finding("session", OK, f"PostgreSQL {version // 10000}, writable, {way}")
    usable = list(_schema(database))
    yield from usable
    yield _role(database)
    yield from _tables(database, settings)
    yield from _commit(database)
    yield _timeouts(database, settings)
    yield from session.settings(database)
    yield _encoding(database)
    yield _connections(database)
    yield _link(database)
    if identity is not None and all(each.level == OK for each in usable):
        yield _dead_letters(database, identity)
        yield _losses(database, identity)


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("postgresql", check, level, found, remedy)


def _schema(database: PostgresSession) -> Iterator[Finding]:
    try:
        schema.check(database)
        yield _finding("schema", OK, f"version {schema.VERSION}")
        schema.check_rights(database)
        yield _finding("rights", OK, "the role has all privileges that it needs")
    except SchemaMissing as error:
        yield _finding("schema", FAIL, str(error.args[0]), error.hint)
    except RightsMissing as error:
        yield _finding("rights", FAIL, str(error.args[0]), error.hint)


def _role(database: PostgresSession) -> Finding:
    row = database.run(
        "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
        " FROM pg_catalog.pg_roles WHERE rolname = current_user"
    )[0]
    name, superuser, *powers = row
    remedy = "use the role of `processor print schema` for the drain"
    if superuser:
        return _finding("role", WARN, f"{name} is a superuser", remedy)
    words = ("create databases", "create roles", "replicate", "bypass row security")
    may = [word for word, has in zip(words, powers, strict=True) if has]
    may += [role for role in _STRONG
            if _one(database, f"SELECT pg_catalog.pg_has_role('{role}', 'MEMBER')")]
    if may:
        return _finding("role", WARN, f"{name} may {', '.join(may)}", remedy)
    return _finding("role", OK, f"{name} has no privileges beyond its tables")


def _tables(database: PostgresSession, settings: Settings) -> Iterator[Finding]:
    """The tables that database.tables allows in transactions; none if it is empty."""
    for name in settings.database.tables:
        identifier = quoted(table(name))
        if not _one(database, f"SELECT pg_catalog.to_regclass({identifier}) IS NOT NULL"):
            yield _finding("tables", FAIL, f"{name} does not exist",
                           "create it, or remove it from database.tables")
        elif not _one(database, f"SELECT pg_catalog.has_table_privilege({identifier}, 'INSERT')"):
            yield _finding("tables", WARN, f"the role may not insert into {name}", "grant it")


def _commit(database: PostgresSession) -> Iterator[Finding]:
    if _one(database, "SELECT pg_catalog.current_setting('fsync')") == "off":
        yield _finding("fsync", FAIL, "off: a crash of the machine may destroy the database",
                       "set fsync on")
    level = _one(database, "SELECT pg_catalog.current_setting('synchronous_commit')")
    if level == "off":
        yield _finding("synchronous_commit", WARN, "off: a crash may lose the last commits, whose"
                       " entries are no longer in Redis", "set it on for the role that drains")
    else:
        yield _finding("synchronous_commit", OK, str(level))


def _timeouts(database: PostgresSession, settings: Settings) -> Finding:
    names = ("statement_timeout", "lock_timeout", "idle_session_timeout",
             "idle_in_transaction_session_timeout")
    values = {
        name: str(_one(database, f"SELECT pg_catalog.current_setting('{name}')")) for name in names
    }
    unset = [name for name, value in values.items() if value == "0"]
    if unset:
        return _finding("timeouts", FAIL, f"not in force: {', '.join(unset)}",
                        "a proxy drops SET: connect to PostgreSQL directly")
    return _finding("timeouts", OK, f"statement {values['statement_timeout']}, lock"
                    f" {values['lock_timeout']}, takeover {settings.database.takeover:g}s")


def _encoding(database: PostgresSession) -> Finding:
    encoding = _one(database, "SELECT pg_catalog.current_setting('server_encoding')")
    if encoding != "UTF8":
        return _finding("encoding", WARN, f"{encoding}: other text becomes a dead letter",
                        "use a database with encoding UTF8")
    return _finding("encoding", OK, "UTF8")


def _connections(database: PostgresSession) -> Finding:
    limit, used = database.run(
        "SELECT pg_catalog.current_setting('max_connections')::int"
        " - pg_catalog.current_setting('superuser_reserved_connections')::int,"
        " (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity"
        " WHERE backend_type = 'client backend')"
    )[0]
    if limit - used < _FREE:
        return _finding("connections", WARN, f"{used} of {limit} in use",
                        "raise max_connections, or use a pooler for other clients")
    return _finding("connections", OK, f"{used} of {limit} in use")


def _link(database: PostgresSession) -> Finding:
    host, encrypted = database.run(
        "SELECT pg_catalog.host(pg_catalog.inet_server_addr()),"
        " (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid())"
    )[0]
    if host is None or encrypted:
        return _finding("link", OK, "TLS" if encrypted else "a Unix socket")
    if addresses.loopback(f"[{host}]:1" if ":" in host else f"{host}:1"):
        return _finding("link", OK, "loopback")
    return _finding("link", WARN, f"unencrypted to {host}", "add sslmode=verify-full to the dsn")


def _dead_letters(database: PostgresSession, identity: str) -> Finding:
    undecided = dead_letters.count_open(database, identity)
    if undecided:
        return _finding("dead letters", WARN, f"{count(undecided, 'dead letter')} to decide",
                        "see `processor dead list`")
    return _finding("dead letters", OK, "none")


def _losses(database: PostgresSession, identity: str) -> Finding:
    found = stream_losses.of_buffer(database, identity)
    if found:
        return _finding("losses", FAIL, "; ".join(map(str, found)),
                        "submit what is missing again, then `processor verify"
                        " --acknowledge-losses`")
    return _finding("losses", OK, "no loss of entries in Redis is open")


def clock(database: PostgresSession) -> float:
    """The time by the clock of PostgreSQL, in Unix seconds."""
    sql = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8"
    return float(database.run(sql)[0][0])


def _one(database: PostgresSession, sql: str) -> object:
    return database.run(sql)[0][0]
