"""Names of tables: table or schema.table; a part with a dot in it is written in double quotes.

Both forms are one text, which entries, settings and messages carry: orders, sales.orders,
sales."orders.2026". In double quotes a double quote is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What a name may be given as: a text, or schema and table, or the table alone.
TableName = str | tuple[str, ...]

_PART = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<bare>[^".][^.]*)|')


def parts(name: str) -> list[str]:
    """Return schema and table, or the table alone. What is no name has a part that is empty."""
    if '"' not in name:
        return name.split(".")
    found: list[str] = []
    at = 0
    while True:
        part = _PART.match(name, at)
        assert part is not None  # It matches the empty text.
        quoted = part["quoted"]
        found.append((part["bare"] or "") if quoted is None else quoted.replace('""', '"'))
        at = part.end()
        if at == len(name):
            return found
        if name[at] != ".":
            return ["", ""]  # Text behind a closing quote, or a quote that is not closed.
        at += 1


def joined(names: Sequence[str]) -> str:
    """Return the text of a name, with quotes where they are needed."""
    return ".".join(_written(name) for name in names)


def canonical(name: str) -> str:
    """Return the one text for a name that may be written in several ways."""
    return joined(parts(name)) if '"' in name else name


def is_quoted(name: str) -> bool:
    """Return whether a part of a name is written in quotes: release 0.1 does not know them."""
    return name != ".".join(parts(name))


def _written(name: str) -> str:
    if "." not in name and not name.startswith('"'):
        return name
    return '"' + name.replace('"', '""') + '"'
