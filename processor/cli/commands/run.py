"""`processor run`, and `start`, `stop`, `reload` for machines without systemd.

The work is in `service` and `daemon`; here is only what a person or a unit file says to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from processor.cli import output
from processor.config import loader
from processor.config.settings import Settings
from processor.errors import ConfigError
from processor.service import daemon, foreground

F = TypeVar("F", bound=Callable[..., Any])

pidfile_option = click.option(
    "--pidfile", type=click.Path(path_type=Path, dir_okay=False),
    help="Of the daemon; by default one a user and namespace.",
)


@click.command()
@click.pass_context
def run(context: click.Context) -> int:
    """Drain in the foreground until SIGTERM or Ctrl-C; SIGHUP reads the settings anew."""
    source = context.find_root().obj
    return foreground.run(loader.configure(source), source)


@click.command()
@pidfile_option
@click.option("--log-file", type=click.Path(path_type=Path, dir_okay=False),
              help="What the daemon has to say.")
@click.pass_context
def start(context: click.Context, pidfile: Path | None, log_file: Path | None) -> None:
    """Start a daemon; returns after its first pass."""
    source = context.find_root().obj
    pid = daemon.start(loader.configure(source), source, pidfile=pidfile, log_file=log_file)
    output.message(f"started, pid {pid}")


@click.command()
@pidfile_option
@click.pass_context
def stop(context: click.Context, pidfile: Path | None) -> None:
    """Stop the daemon; returns when its batch is settled and it is gone."""
    try:
        settings = loader.configure(context.find_root().obj)
    except ConfigError:
        # They name the pidfile where nobody else does, and are of no use to a stop but for that.
        if pidfile is None:
            raise
        settings = Settings()
    output.message(f"stopped, pid {daemon.stop(settings, pidfile=pidfile)}")


@click.command()
@pidfile_option
@click.pass_context
def reload(context: click.Context, pidfile: Path | None) -> None:
    """Have the daemon read its settings anew, after they were checked here."""
    pid = daemon.reload(loader.configure(context.find_root().obj), pidfile=pidfile)
    output.message(f"reload requested of pid {pid}: see its log")
