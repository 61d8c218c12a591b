"""A batch as it is sent: its entries written out as one text, or in parts for `isolation`.

What cannot be written - a value that does not fit its column, a table that is not there - is named
with its reason and left to `apply` to judge: the catalog that says so may be older than the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from processor.apply import poison
from processor.apply.committer import Committer
from processor.ledger.dead_letters import Reason
from processor.sql.renderer import UNFORESEEN, Taken, Unrenderable, tables
from processor.transaction.entry import Entry


@dataclass(slots=True)
class Written:
    """Entries as text, or as parts for isolation; good while the session's mark is the same."""

    entries: list[Entry]
    taken: list[Taken]
    text: str
    unfit: dict[str, Reason]
    mark: tuple[int, int]
    parts: poison.Parts | None = None


def write(session: Committer, entries: list[Entry], *, in_parts: bool) -> Written:
    """Write entries whose tables the session knows; `in_parts` if isolation is to apply them.

    Raises KeyError if a table is not known to the session.
    """
    renderer = session.renderer
    taken: list[Taken] = []
    unfit: dict[str, Reason] = {}
    for entry in entries:
        try:
            taken.append(renderer.take(entry))
        except Unrenderable as error:
            unfit[entry.id] = Reason(str(error), error.sqlstate)
        except UNFORESEEN as error:
            unfit[entry.id] = Reason(f"cannot be written: {type(error).__name__}", "22000")
    if in_parts and not unfit and not limited(entries):
        parts = poison.parts(renderer, taken)
        if parts is not None:
            return Written(entries, taken, "", unfit, session.mark, parts)
    text, refused = renderer.batch(taken)
    unfit |= {i: Reason(str(error), error.sqlstate) for i, error in refused.items()}
    return Written(entries, taken, text, unfit, session.mark)


def names_of(entries: Sequence[Entry]) -> set[str]:
    """The tables that these entries name."""
    return set().union(*map(tables, entries)) if entries else set()


def limited(entries: Sequence[Entry]) -> bool:
    """Whether one of these has a time limit of its own: it counts for each of its statements."""
    return any(entry.timeout is not None for entry in entries)
