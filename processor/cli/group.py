"""A group of commands that suggests the nearest name for one that does not exist."""

from __future__ import annotations

from typing import Any

import click

from processor.admin.wording import suggestion


class Group(click.Group):
    """Like click's group, but a missing or unknown command is one line of error, not the help."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        named.setdefault("no_args_is_help", False)
        super().__init__(*arguments, **named)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command. Raises UsageError, with a suggestion, if there is none."""
        name, names = args[0], self.list_commands(ctx)
        if name.startswith("-") or name in names:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"no such command: {name[:60]} ({suggestion(name, names)})", ctx)
