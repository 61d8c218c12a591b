"""The option -c FILE, before or behind a command, and the file that it names."""

from __future__ import annotations

import click


def with_config(command: click.Command) -> click.Command:
    """Accept -c FILE behind a command too, where most people put it."""
    if not any("--config" in each.opts for each in command.params):
        command.params.append(
            click.Option(["-c", "--config"], metavar="FILE", expose_value=False,
                         callback=_take_config, help="Settings file.")
        )
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        with_config(each)
    return command


def _take_config(context: click.Context, _option: click.Parameter, file: str | None) -> None:
    if file is not None:
        context.find_root().obj = file


def settings_file(context: click.Context) -> str | None:
    """The file that -c names; None without -c."""
    file: str | None = context.find_root().obj
    return file
