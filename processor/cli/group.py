"""A noun with its verbs: commands below one name, and a guess where the verb is mistyped."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click


class Group(click.Group):
    """A group that asks for a command in one line, and knows its neighbours."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        named.setdefault("no_args_is_help", False)
        super().__init__(*arguments, **named)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or a usage error that names the nearest one."""
        name, known = args[0], self.list_commands(ctx)
        if name.startswith("-") or name in known:
            return super().resolve_command(ctx, args)
        near = get_close_matches(name, known, 1)
        guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise click.UsageError(f"no such command: {name[:60]} ({guess})", ctx)
