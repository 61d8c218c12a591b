"""`processor guide`: the pages of the guide, which are shipped with the program."""

from __future__ import annotations

import sys

import click

from processor.admin.wording import suggestion
from processor.cli import output, shipped


def _topics(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The topics that begin with what was typed, for the shell."""
    return [name for name in shipped.guide() if name.startswith(begun)]


@click.command()
@click.argument("topic", required=False, shell_complete=_topics)
def guide(topic: str | None) -> None:
    """Read a page of the guide; without TOPIC, list the pages.

    On a terminal the page is shown in your pager.
    """
    pages = shipped.guide()
    if topic is None:
        output.table(("topic", "contents"), [(name, _first(text)) for name, text in pages.items()])
    elif topic not in pages:
        raise click.UsageError(f"no such page: {topic[:60]} ({suggestion(topic, [*pages])})",
                               click.get_current_context())
    elif output.terminal(sys.stdout):
        click.echo_via_pager(pages[topic])
    else:
        output.text(pages[topic])


def _first(text: str) -> str:
    """The first paragraph of a page, below its title."""
    return " ".join(text.split("\n\n", 2)[1].split())
