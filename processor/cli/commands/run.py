"""`processor run`, and `start`, `stop`, `reload` for machines without systemd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from processor.cli import output
from processor.cli.config_option import settings_file
from processor.config import loader
from processor.config.settings import Settings
from processor.errors import ConfigError
from processor.service import daemon, foreground

F = TypeVar("F", bound=Callable[..., Any])

pidfile_option = click.option(
    "--pidfile", type=click.Path(path_type=Path, dir_okay=False),
    help="Pidfile of the daemon; default: one per user and namespace.",
)


@click.command()
@click.pass_context
def run(context: click.Context) -> int:
    """Run in the foreground until SIGTERM or Ctrl-C.

    SIGHUP reloads the settings.
    """
    source = settings_file(context)
    return foreground.run(loader.configure(source), source)


@click.command()
@pidfile_option
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False),
              help="Log file of the daemon.")
@click.pass_context
def start(context: click.Context, pidfile: Path | None, log_file: Path | None) -> None:
    """Start a daemon; return after its first pass."""
    source = settings_file(context)
    pid = daemon.start(loader.configure(source), source, pidfile=pidfile, log_file=log_file)
    output.message(f"started, pid {pid}")


@click.command()
@pidfile_option
@click.pass_context
def stop(context: click.Context, pidfile: Path | None) -> None:
    """Stop the daemon; return when its batch is settled and it has exited."""
    try:
        settings = loader.configure(settings_file(context))
    except ConfigError:
        # A stop needs the settings only for the default pidfile.
        if pidfile is None:
            raise
        settings = Settings()
    output.message(f"stopped, pid {daemon.stop(settings, pidfile=pidfile)}")


@click.command()
@pidfile_option
@click.pass_context
def reload(context: click.Context, pidfile: Path | None) -> None:
    """Make the daemon reload its settings, once they are valid."""
    pid = daemon.reload(loader.configure(settings_file(context)), pidfile=pidfile)
    output.message(f"reload signal sent to pid {pid}: see its log")
