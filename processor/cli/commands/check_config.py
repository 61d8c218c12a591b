"""`processor check-config`: what a start would refuse, told beforehand and without a server."""

from __future__ import annotations

from pathlib import Path

import click

from processor.cli import output, unit
from processor.config import loader
from processor.errors import ConfigError


@click.command("check-config")
@click.option("--show", is_flag=True, help="Print all settings in force, passwords masked.")
@click.option("--unit", "unit_file", help="The unit that will run it; by default the installed one,"
              " or ours.", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output.json_option
@click.pass_context
def check_config(
    context: click.Context, show: bool, unit_file: Path | None, as_json: bool
) -> None:
    """Check the settings; exit 78 and name every mistake with its line if there is any."""
    source = context.find_root().obj
    settings = loader.configure(source)
    if problems := unit.contradictions(settings, unit_file):
        raise ConfigError("\n".join(problems), hint="change one of the two")
    if as_json:
        output.record(loader.as_mapping(settings))
    elif show:
        output.text(loader.dump(settings))
    else:
        output.message(f"{source or 'the settings'}: good")
