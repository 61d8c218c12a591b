"""Text of producers in a database whose encoding may lack some of its letters (rule 93).

A letter that the database lacks is stored as an escape, so that the row can be written and read by
people. The exact texts are stored beside it, as bytes, and are what our code reads back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

#: How Python calls the encodings of PostgreSQL. In every other encoding ASCII alone is certain.
_CODECS = {"UTF8": "utf-8", "SQL_ASCII": "utf-8", "LATIN1": "latin-1"}


def escaped(text: str, encoding: str) -> str:
    """Return the text with each letter escaped that a database of this encoding may lack."""
    codec = _CODECS.get(encoding, "ascii")
    return text.encode(codec, "backslashreplace").decode(codec)


def exact(texts: Mapping[str, Any], encoding: str) -> str:
    """Return the SQL literal of the exact texts; NULL if the database can store all of them."""
    flat = [each for value in texts.values() if value is not None
            for each in ([value] if isinstance(value, str) else value)]  # fmt: skip
    if all(escaped(each, encoding) == each for each in flat):
        return "NULL"
    return f"'\\x{msgspec.json.encode(texts).hex()}'::bytea"


def read(stored: Any) -> dict[str, Any]:
    """Return the exact texts of a row by name; empty if there are none."""
    return {} if stored is None else msgspec.json.decode(bytes(stored), type=dict[str, Any])
