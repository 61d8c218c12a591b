"""The code blocks of README.rst, by name; whoever executes one asks for it here."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.rst").read_text()
_BLOCK = re.compile(
    r"^\.\. code-block:: \w+\n(?:   :name: (?P<name>[\w-]+)\n)?\n(?P<code>(?:(?: {3}.*)?\n)+)", re.M
)


def blocks() -> dict[str, str]:
    """The code by name. A block without a name could not be executed by anybody."""
    found: dict[str, str] = {}
    for match in _BLOCK.finditer(TEXT):
        assert match["name"], f"a block without a name:\n{match['code']}"
        assert match["name"] not in found, match["name"]
        found[match["name"]] = textwrap.dedent(match["code"]).strip() + "\n"
    return found


def block(name: str, changes: Mapping[str, str] | None = None) -> str:
    """The code of a block, with what a test must have otherwise put in place of what is there."""
    code = blocks()[name]
    for old, new in (changes or {}).items():
        assert old in code, f"{old!r} is not in block {name}"
        code = code.replace(old, new)
    return code
