"""Text as SQL literals and identifiers, for sessions with standard_conforming_strings on."""

from __future__ import annotations

from processor.transaction import table_names


def quoted(text: str) -> str:
    """Return text as a string literal. NUL is dropped; the builder has refused it before."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def named(name: str) -> str:
    """Return a name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def table(name: str) -> str:
    """Return the name of a table (`table_names`) as an identifier."""
    return ".".join(map(named, table_names.parts(name)))
