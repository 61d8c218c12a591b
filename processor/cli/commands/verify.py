"""`processor verify`: whether Redis and PostgreSQL agree, one finding per check."""

from __future__ import annotations

import click

from processor.admin import consistency
from processor.admin.sessions import OperatorSessions
from processor.cli import findings, output
from processor.cli.options import with_sessions


@click.command()
@output.json_option
@with_sessions
def verify(sessions: OperatorSessions, as_json: bool) -> int:
    """Compare Redis with PostgreSQL; changes nothing.

    The exit code is 1 if a check fails. It may run beside a working processor.
    """
    return findings.show(consistency.verify(sessions), as_json)
