"""`processor check-config`: reports what a start would refuse, without contacting a server."""

from __future__ import annotations

from pathlib import Path

import click

from processor.cli import output, unit
from processor.cli.config_option import settings_file
from processor.config import loader
from processor.errors import ConfigError


@click.command("check-config")
@click.option("--show", is_flag=True, help="Print all settings, passwords masked.")
@click.option("--unit", "unit_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Compare with this systemd unit; default: the installed or the shipped one.")
@output.json_option
@click.pass_context
def check_config(
    context: click.Context, show: bool, unit_file: Path | None, as_json: bool
) -> None:
    """Validate the settings.

    Exits with 78 if any is wrong, and names every mistake with its line.
    """
    source = settings_file(context)
    settings = loader.configure(source)
    if problems := unit.contradictions(settings, unit_file):
        raise ConfigError("\n".join(problems), hint="change one of the two")
    if as_json:
        output.record(loader.as_mapping(settings))
    elif show:
        output.text(loader.dump(settings))
    else:
        output.message(f"{source} is valid" if source else "the settings are valid")
