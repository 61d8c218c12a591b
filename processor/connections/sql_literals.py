"""Literals of SQL, for a session with standard_conforming_strings on."""

from __future__ import annotations


def quoted(text: str) -> str:
    """Text as a string literal. NUL is refused at the door and dropped here."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def named(name: str) -> str:
    """A name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def table(name: str) -> str:
    """A table's name, optionally schema.table, as an identifier."""
    return ".".join(named(part) for part in name.split("."))
