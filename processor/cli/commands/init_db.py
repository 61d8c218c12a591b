"""`processor init-db`: make the schema in PostgreSQL, or print what would make it.

The role that drains need not be one that may create schemas: an administrator runs this once, with
a DSN of his own or from what `--print` prints.
"""

from __future__ import annotations

import os

import click

from processor.admin import redis_acl
from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.ledger import schema

#: Not an option with the DSN itself: everybody on the machine can read arguments.
_ADMIN = "PROCESSOR_ADMIN_DSN"


@click.command("init-db")
@click.option("--print", "only_print", is_flag=True,
              help="Print schema, role and Redis users; touch nothing.")
@with_servers
def init_db(servers: OperatorSessions, only_print: bool) -> None:
    """Create or upgrade the schema; PROCESSOR_ADMIN_DSN names another role than the drain's."""
    if only_print:
        _print(servers)
        return
    with servers.postgresql(os.environ.get(_ADMIN)) as database:
        schema.create(database)
        schema.check(database)
    output.message(f"the schema processor is there, version {schema.VERSION}")


def _print(servers: OperatorSessions) -> None:
    output.text(schema.DDL)
    output.text(schema.ROLE)
    output.text("\n-- Redis users, for its ACL file; set passwords of your own:")
    for line in redis_acl.lines(servers.settings.namespace, servers.settings.redis.url):
        output.line(f"-- {line}")
