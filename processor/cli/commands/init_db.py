"""`processor init-db`: creates the schema in PostgreSQL, or prints the SQL for it.

The role that drains need not be allowed to create schemas: an administrator runs this once with
another DSN, or runs what `--print` prints.
"""

from __future__ import annotations

import os

import click

from processor.admin import redis_acl
from processor.admin.sessions import OperatorSessions
from processor.cli import output
from processor.cli.options import with_sessions
from processor.ledger import schema

#: A variable and no option, since every user of the machine can read arguments.
_ADMIN = "PROCESSOR_ADMIN_DSN"


@click.command("init-db")
@click.option("--print", "only_print", is_flag=True,
              help="Print schema, role and Redis users; change nothing.")
@with_sessions
def init_db(sessions: OperatorSessions, only_print: bool) -> None:
    """Create or upgrade the schema in PostgreSQL.

    If the role of database.dsn may not, set PROCESSOR_ADMIN_DSN to the DSN of one that may.
    """
    if only_print:
        _print(sessions)
        return
    with sessions.postgresql(os.environ.get(_ADMIN)) as database:
        schema.create(database)
        schema.check(database)
    output.message(f'schema "processor" is ready (version {schema.VERSION})')


def _print(sessions: OperatorSessions) -> None:
    output.text(schema.DDL)
    output.text(schema.ROLE)
    output.text("\n-- Redis users, for the ACL file of Redis; set your own passwords:")
    for line in redis_acl.lines(sessions.settings.namespace, sessions.settings.redis.url):
        output.line(f"-- {line}")
