"""The command `processor`: one file a noun, found by name and loaded when it is called.

`main` turns whatever happens in a command into one line and one exit code (`output`). The table
below is the only place that knows which command lives where; `--help` is printed from it, so that
it loads none of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from processor.cli import output, shadow
from processor.cli.group import Group
from processor.cli.interrupt import InterruptGuard
from processor.errors import ProcessorError
from processor.version import __version__


class Place(NamedTuple):
    """Where a command lives, and what the overview says of it."""

    module: str  # in `cli.commands`
    attribute: str
    summary: str


#: A command is one line here. Modules are named, not imported: whoever asks for the status should
#: not wait until everything that `run` needs is loaded.
SECTIONS: dict[str, dict[str, Place]] = {
    "First": {
        "demo": Place("demo", "demo", "See it survive kills, on servers of its own."),
    },
    "Work": {
        "submit": Place("submit", "submit", "Submit transactions, one JSON a line."),
        "status": Place("status", "status", "Show processors, lanes, dead letters."),
        "queues": Place("queues", "queues", "List, pause and resume queues."),
        "dead": Place("dead", "dead", "Show, retry, edit, discard dead letters."),
        "explain": Place("explain", "explain", "Say where a transaction is and why."),
        "verify": Place("verify", "verify", "Compare Redis with PostgreSQL."),
    },
    "Service": {
        "run": Place("run", "run", "Drain in the foreground, as systemd wants it."),
        "start": Place("run", "start", "Start a daemon with a pidfile."),
        "stop": Place("run", "stop", "Stop the daemon; it finishes its batch."),
        "reload": Place("run", "reload", "Have the daemon read its settings anew."),
    },
    "Set-up": {
        "init-db": Place("init_db", "init_db", "Create the schema in PostgreSQL."),
        "check-config": Place("check_config", "check_config", "Check the settings."),
        "doctor": Place("doctor", "doctor", "Examine servers, role and host."),
        "print": Place("print", "prints", "Print unit, config, schema or ACL."),
    },
}


def with_config(command: click.Command) -> click.Command:
    """Let -c FILE also stand behind the command, where most people look for it."""
    if not any("--config" in each.opts for each in command.params):
        command.params.append(
            click.Option(["-c", "--config"], metavar="FILE", expose_value=False,
                         callback=_take_config, help="Settings.")
        )
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        with_config(each)
    return command


def _take_config(context: click.Context, _option: click.Parameter, file: str | None) -> None:
    if file is not None:
        context.find_root().obj = file


class Commands(Group):
    """Commands by name, loaded when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section in SECTIONS.values():
            if place := section.get(cmd_name):
                with InterruptGuard():
                    module = importlib.import_module(f"processor.cli.commands.{place.module}")
                return with_config(getattr(module, place.attribute))
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, place.summary) for name, place in section.items()])


@click.group(
    cls=Commands, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 what was asked for did not hold, 2 usage, 69 a server is "
    "unavailable, 78 configuration.",
)
@click.option("-c", "--config", "file", metavar="FILE",
              help="Settings; without it PROCESSOR_CONFIG, REDIS_URL and DATABASE_URL, defaults.")
@click.option("--version", is_flag=True, help="Print the version, and from where it is loaded.")
@click.pass_context
def processor(context: click.Context, file: str | None, version: bool) -> int | None:
    """Accept transactions in Redis, commit each once in PostgreSQL."""
    context.obj = file
    if version:
        output.line(f"processor {__version__} from {shadow.LOADED}")
        context.exit()
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        return output.USAGE
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            # A terminal's encoding must not turn a foreign letter into a failure.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _invoke(list(sys.argv[1:] if arguments is None else arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        output.silence_stdout()
        return output.PIPE_CLOSED
    except (KeyboardInterrupt, click.Abort):
        return output.INTERRUPTED
    except (ProcessorError, click.ClickException, OSError) as error:
        return output.report(error)
    return code


def _invoke(arguments: list[str]) -> int:
    # Not click's own main(): that prints at Ctrl-C, and has its own idea of exit codes.
    try:
        with processor.make_context("processor", arguments) as context:
            return int(processor.invoke(context) or 0)
    except click.exceptions.Exit as ending:
        return ending.exit_code
