"""`processor verify`: whether Redis and PostgreSQL agree, one finding per check."""

from __future__ import annotations

import click

from processor.admin import consistency
from processor.admin.sessions import OperatorSessions
from processor.cli import findings, output
from processor.cli.options import with_sessions


@click.command()
@click.option("--acknowledge-losses", "acknowledge", is_flag=True,
              help="Close the reported losses of entries; receipts still show them.")
@output.json_option
@with_sessions
def verify(sessions: OperatorSessions, acknowledge: bool, as_json: bool) -> int:
    """Compare Redis with PostgreSQL; changes nothing, unless it acknowledges losses.

    The exit code is 1 if a check fails. It may run beside a working processor.
    """
    if acknowledge:
        for loss in consistency.acknowledge_losses(sessions):
            output.message(f"acknowledged: {loss}")
    return findings.show(consistency.verify(sessions), as_json)
