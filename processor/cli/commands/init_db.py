"""`processor init-db`: creates or upgrades the schema in PostgreSQL, or prints the SQL for it.

The role that drains need not be allowed to create schemas: an administrator runs this once with
another DSN, or runs what `--print` or `--dry-run` prints.
"""

from __future__ import annotations

import os

import click

from processor.admin import redis_acl
from processor.admin.sessions import OperatorSessions
from processor.cli import output
from processor.cli.options import with_sessions
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseError
from processor.ledger import schema

#: A variable and no option, since every user of the machine can read arguments.
_ADMIN = "PROCESSOR_ADMIN_DSN"


@click.command("init-db")
@click.option("--print", "only_print", is_flag=True,
              help="Print schema, role and Redis users; change nothing.")
@click.option("--upgrade", is_flag=True, help="Upgrade a schema of an older release as well.")
@click.option("--dry-run", is_flag=True,
              help="Print the SQL that this database lacks; change nothing.")
@with_sessions
def init_db(
    sessions: OperatorSessions, only_print: bool, upgrade: bool, dry_run: bool
) -> None:
    """Create the schema in PostgreSQL; with --upgrade also upgrade that of an older release.

    If the role of database.dsn may not, set PROCESSOR_ADMIN_DSN to the DSN of one that may.
    Processors of the older release may run during an upgrade and go on after it.
    """
    if only_print:
        _print(sessions)
        return
    with sessions.postgresql(os.environ.get(_ADMIN)) as database:
        found = _installed(database)
        if dry_run:
            output.text(schema.missing(found) or "-- the schema is up to date\n")
            return
        if found is None or upgrade:
            schema.create(database)
        schema.check(database)
    output.message(f'schema "processor" is ready (version {schema.VERSION})')


def _installed(database: PostgresSession) -> schema.Installed | None:
    try:
        return schema.installed(database)
    except DatabaseError as error:
        schema.refuse_rights(database, error)
        raise


def _print(sessions: OperatorSessions) -> None:
    output.text(schema.DDL)
    output.text(schema.ROLE)
    output.text("\n-- Redis users, for the ACL file of Redis 7 or later; set your own passwords."
                " For Redis 6.2: processor print acl --redis 6")
    for line in redis_acl.lines(sessions.settings.namespace, sessions.settings.redis.url):
        output.line(f"-- {line}")
