"""`processor print`: files and statements that an administrator installs.

They come from the installed package, so they always match the program that prints them.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from processor.admin import redis_acl
from processor.cli import completion, output
from processor.cli.config_option import settings_file
from processor.cli.group import Group
from processor.cli.shipped import shipped
from processor.config import loader
from processor.config.settings import Settings
from processor.connections.redis_client import RedisConnection
from processor.errors import ConfigError, RedisUnavailable
from processor.ledger import schema

_PROGRAM = "/usr/bin/processor"


@click.group("print", cls=Group)
def prints() -> None:
    """Print systemd unit, settings, schema, ACL, completion."""


@prints.command()
@click.option("--instances", is_flag=True, help="Print the template processor@.service.")
def unit(instances: bool) -> None:
    """Print the systemd unit, with the path of this program."""
    text = shipped("systemd", "processor@.service" if instances else "processor.service")
    output.text(text.replace(_PROGRAM, _this_program()))


@prints.command("config")
def config_() -> None:
    """Print all settings with their defaults and reasons."""
    output.text(shipped("etc", "processor.yml"))


@prints.command("schema")
def schema_() -> None:
    """Print the SQL of the schema and of its least-privilege role."""
    output.text(f"{schema.DDL}\n{schema.ROLE}")


@prints.command("acl")
@click.option(
    "--redis", "release", type=click.Choice(["6", "7"]),
    help="The major release of Redis: 7 stands for all later ones and Valkey. [default: asks]",
)
@click.pass_context
def acl_(context: click.Context, release: str | None) -> None:
    """Print least-privilege Redis users, as lines of an ACL file."""
    settings = loader.configure(settings_file(context))
    chosen = int(release) if release else _release(settings)
    for line in redis_acl.lines(settings.namespace, settings.redis.url, chosen):
        output.line(line)
    if chosen < redis_acl.SELECTORS:
        output.message("Redis 6 combines all commands of a user with all of its keys: these users"
                       " may do more than those for Redis 7, and a producer's may forge records")
    if output.terminal(sys.stdout):
        output.message("set your own passwords; each line goes into the ACL file of Redis, or"
                       " without its first word behind ACL SETUSER")


def _release(settings: Settings) -> int:
    redis = RedisConnection(settings.redis.url, settings.redis.timeout)
    try:
        found = redis_acl.release_of(redis)
        why = "Redis does not say its release"
    except (RedisUnavailable, ConfigError) as error:
        found, why = None, str(error)
    finally:
        redis.close()
    if found is None:
        output.message(f"{why}: these lines are for Redis 7 or later, see --redis")
    return found or redis_acl.SELECTORS


@prints.command("completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
@click.pass_context
def completion_(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands and options.

    For bash, in ~/.bashrc: eval "$(processor print completion bash)"
    """
    output.text(completion.script(context.find_root().command, shell))


def _this_program() -> str:
    """The command line of this program: the script, or the interpreter with the module."""
    called = Path(sys.argv[0])
    if called.name == "processor":
        found = shutil.which(sys.argv[0])
        if found:
            return shlex.quote(str(Path(found).resolve()))
    return f"{shlex.quote(sys.executable)} -m processor"
