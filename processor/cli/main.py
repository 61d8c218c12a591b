"""The command `processor`: a table of commands, each imported when it is called.

`main` turns every error of a command into one line and an exit code (see `output`). `--help` is
printed from the table, so that it imports no command.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from processor.cli import completion, output, shadow
from processor.cli.config_option import with_config
from processor.cli.group import Group
from processor.cli.interrupt import InterruptGuard
from processor.errors import ProcessorError
from processor.version import __version__


class Place(NamedTuple):
    """The module of a command in `cli.commands`, its name there, and its line in `--help`."""

    module: str
    attribute: str
    summary: str


#: One line per command. Modules are named, not imported, so that `status` does not wait until
#: everything that `run` needs is imported.
SECTIONS: dict[str, dict[str, Place]] = {
    "Try it": {
        "demo": Place("demo", "demo", "Watch it survive kills, on temporary servers."),
        "dev": Place("dev", "dev", "Run servers and processor for development."),
        "guide": Place("guide", "guide", "Read the guide."),
    },
    "Work": {
        "submit": Place("submit", "submit", "Submit transactions, one JSON object per line."),
        "status": Place("status", "status", "Show processors, lanes, dead letters."),
        "queues": Place("queues", "queues", "List, pause and resume queues."),
        "dead": Place("dead", "dead", "Show, retry, edit and discard dead letters."),
        "explain": Place("explain", "explain", "Show where a transaction is, and why."),
        "verify": Place("verify", "verify", "Check that Redis and PostgreSQL agree."),
    },
    "Service": {
        "run": Place("run", "run", "Run in the foreground, for systemd."),
        "start": Place("run", "start", "Start a daemon, on machines without systemd."),
        "stop": Place("run", "stop", "Stop the daemon after its current batch."),
        "reload": Place("run", "reload", "Make the daemon reload its settings."),
    },
    "Setup": {
        "init-db": Place("init_db", "init_db", "Create or upgrade the schema in PostgreSQL."),
        "check-config": Place("check_config", "check_config", "Validate the settings."),
        "doctor": Place("doctor", "doctor", "Check servers, role and host."),
        "print": Place("print", "prints", "Print systemd unit, settings, schema, ACL, completion."),
    },
}


class Commands(Group):
    """The commands of the table, each imported when it is called."""

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
    epilog="Exit codes: 0 success, 1 failure or failed check, 2 usage, 69 a server is "
    "unavailable, 78 invalid settings.",
)
@click.option("-c", "--config", "file", metavar="FILE",
              help="Settings file; default: PROCESSOR_CONFIG, else REDIS_URL and DATABASE_URL.")
@click.option("--version", is_flag=True, help="Print the version and the path of the program.")
@click.pass_context
def processor(context: click.Context, file: str | None, version: bool) -> int | None:
    """Accept transactions in Redis, commit each exactly once in PostgreSQL."""
    context.obj = file
    if version:
        output.line(f"processor {__version__} from {shadow.LOADED}")
        context.exit()
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        return output.USAGE
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            # A letter that the terminal cannot encode must not raise.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = completion.answer(processor)
        if code is None:
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
    # Not click's own main(), which prints on Ctrl-C and uses other exit codes.
    try:
        with processor.make_context("processor", arguments) as context:
            return int(processor.invoke(context) or 0)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
