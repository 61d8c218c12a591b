"""`processor demo`: shows on real, temporary servers that nothing is lost or doubled.

The live picture goes to stderr; the closing table and line, or --json, to stdout.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from processor.cli import output
from processor.demo import scenario
from processor.demo.reckoning import Reckoning, Tally
from processor.demo.screen import screen


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 600), default=30.0, show_default=True,
              metavar="N",
              help="Run for about N seconds.")  # fmt: skip
@output.json_option
def demo(seconds: float, as_json: bool) -> int:
    """Submit transactions while PostgreSQL and the processor are killed.

    It starts its own servers and removes them. The exit code is 1 if a transaction is lost or
    applied twice.
    """
    output.message("starting Redis and PostgreSQL")
    found = scenario.play(seconds, screen())
    if as_json:
        output.record(_record(found))
    else:
        _print(found)
    return output.OK if found.holds else output.FAILED


def _print(found: Reckoning) -> None:
    columns = ("telescope", "submitted", "twice", "committed", "dead", "lost", "doubled")
    output.table(columns, [(name, *_cells(tally)) for name, tally in found.tallies.items()])
    if found.reordered:
        output.message(f"{found.reordered} keys were committed out of order")
    if found.waiting:
        output.message(f"{found.waiting} entries still wait; they count as lost")
    if not found.sums_agree:
        output.message("totals in the tables differ from the rows that they count")
    output.line("")
    output.line(found.line())


def _cells(tally: Tally) -> list[str]:
    return [str(number) for number in asdict(tally).values()]


def _record(found: Reckoning) -> dict[str, object]:
    return {
        **asdict(found.total),
        "reordered": found.reordered,
        "waiting": found.waiting,
        "sums_agree": found.sums_agree,
        "holds": found.holds,
        "telescopes": {name: asdict(tally) for name, tally in found.tallies.items()},
    }
