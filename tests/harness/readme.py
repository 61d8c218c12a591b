"""The code blocks of README.rst by name, for the tests that execute them."""

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
    """Return the code of README.rst by name."""
    return code_blocks(TEXT)


def code_blocks(text: str) -> dict[str, str]:
    """Return the code in a text by name. No test can execute a block without a name."""
    found: dict[str, str] = {}
    for match in _BLOCK.finditer(text):
        assert match["name"], f"a block without a name:\n{match['code']}"
        assert match["name"] not in found, match["name"]
        found[match["name"]] = textwrap.dedent(match["code"]).strip() + "\n"
    return found


def block(name: str, changes: Mapping[str, str] | None = None) -> str:
    """Return the code of a block with some of its texts replaced."""
    code = blocks()[name]
    for old, new in (changes or {}).items():
        assert old in code, f"{old!r} is not in block {name}"
        code = code.replace(old, new)
    return code
