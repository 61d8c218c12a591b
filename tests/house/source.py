"""The source of a tree as data: its modules, their imports and their packages.

`tests/house/rules.py` judges what this module reads. Every function takes the root of a checkout,
so that a test can hand in a small tree that breaks one rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: The front door: `processor/__init__.py`.
FRONT = ""


class Import(NamedTuple):
    """One imported name of a file: `a.b` for `from a import b`."""

    name: str
    line: int


@cache
def modules(root: Path) -> dict[str, Path]:
    """The modules of `processor` below `root`: `drain.settle`, and a package by its own name."""
    package = root / "processor"
    return {_name(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}


def packages(root: Path) -> dict[str, Path]:
    """The directories of the packages of `processor`, sub-packages included."""
    return {name: path.parent for name, path in modules(root).items()
            if path.name == "__init__.py"}  # fmt: skip


def members(directory: Path) -> list[str]:
    """The names of the modules and sub-packages of a package, in alphabetical order."""
    files = {path.stem for path in directory.glob("*.py")} - {"__init__"}
    return sorted(files | {path.parent.name for path in directory.glob("*/__init__.py")})


def test_files(root: Path) -> list[Path]:
    return sorted((root / "tests").rglob("*.py"))


def where(root: Path, path: Path, line: int = 1) -> str:
    """`processor/drain/settle.py:12`, as every finding begins."""
    return f"{path.relative_to(root)}:{line}"


def tree(path: Path) -> ast.Module:
    return _parsed(path.read_text())


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, inside functions and type-checking blocks too."""
    for node in ast.walk(tree(path)):
        yield from imports_of(node)


def code_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file with their numbers, without imports, docstrings and comments.

    Lines without a letter, such as a lone bracket, say nothing and are left out too.
    """
    text = path.read_text()
    left_out: set[int] = set()
    for node in ast.walk(_parsed(text)):
        prose = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if prose or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        (number, line.strip()) for number, line in enumerate(text.splitlines(), 1)
        if number not in left_out and re.search(r"[A-Za-z]", line)
        and not line.strip().startswith("#")
    ]  # fmt: skip


def imports_of(node: ast.AST) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(each.name, node.lineno) for each in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = "." * node.level + (node.module or "")
        yield from (Import(f"{origin}.{each.name}", node.lineno) for each in node.names)


def own(root: Path, name: str) -> str | None:
    """The module of `processor` in which an imported name lies; None for a foreign name."""
    parts = name.split(".")
    if parts[0] != "processor":
        return None
    known = modules(root)
    for end in range(len(parts), 1, -1):
        inside = ".".join(parts[1:end])
        if inside in known:
            return inside
    return FRONT


def module_docstrings(path: Path) -> dict[str, str]:
    """What the docstring of a package says of its modules: `name  what it is`, in its order.

    Two blanks or more part the name from its phrase; a phrase continues on indented lines.
    """
    found: dict[str, str] = {}
    last = ""
    for line in (ast.get_docstring(tree(path)) or "").splitlines()[1:]:
        if entry := re.fullmatch(r"(\w+)/?  +(\S.*)", line):
            last = entry[1]
            found[last] = entry[2]
        elif last and line.startswith(" "):
            found[last] += f" {line.strip()}"
        else:
            last = ""
    return found


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)
