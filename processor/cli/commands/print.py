"""`processor print`: what an administrator takes from the program into the system.

Units, sample, schema and Redis users come from the installed package, so they always agree with the
program that prints them.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from processor.admin import redis_acl
from processor.cli import output
from processor.cli.group import Group
from processor.cli.shipped import shipped
from processor.config import loader
from processor.ledger import schema

_PROGRAM = "/usr/bin/processor"


@click.group("print", cls=Group)
def prints() -> None:
    """Print unit, config, schema or ACL."""


@prints.command()
@click.option("--instances", is_flag=True, help="The template processor@.service.")
def unit(instances: bool) -> None:
    """Print the systemd unit, with the path of this program in it."""
    text = shipped("systemd", "processor@.service" if instances else "processor.service")
    output.text(text.replace(_PROGRAM, _this_program()))


@prints.command("config")
def config_() -> None:
    """Print the annotated sample of the settings."""
    output.text(shipped("etc", "processor.yml"))


@prints.command("schema")
def schema_() -> None:
    """Print the schema and the role with least privilege, as SQL."""
    output.text(f"{schema.DDL}\n{schema.ROLE}")


@prints.command("acl")
@click.pass_context
def acl_(context: click.Context) -> None:
    """Print Redis users with least privilege: producer, processor, operator."""
    settings = loader.configure(context.find_root().obj)
    for line in redis_acl.lines(settings.namespace, settings.redis.url):
        output.line(line)
    if output.terminal(sys.stdout):
        output.message("set passwords of your own; each line goes into the ACL file of Redis, or"
                       " after ACL SETUSER without its first word")


def _this_program() -> str:
    """How this program is called: the script, or the interpreter with the module."""
    called = Path(sys.argv[0])
    if called.name == "processor":
        found = shutil.which(sys.argv[0])
        if found:
            return shlex.quote(str(Path(found).resolve()))
    return f"{shlex.quote(sys.executable)} -m processor"
