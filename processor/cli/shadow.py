"""Finds a file of the user's that shadows this package, such as a `processor.py`.

`processor` is a common name for a module, and Python prefers one in the directory where it starts.
The user then needs its path rather than an AttributeError.
"""

from __future__ import annotations

import sys
from pathlib import Path

import processor

LOADED = Path(processor.__file__).resolve().parent


def shadowing(here: Path | None = None) -> list[Path]:
    """The files that Python finds before this package if it is started in `here`."""
    found = []
    for directory in [here or Path.cwd(), *map(Path, sys.path)]:
        folder = directory.resolve()
        if folder == LOADED.parent:
            break
        # Python prefers a package to a module of the same name.
        for name in ("processor/__init__.py", "processor.py"):
            if (folder / name).is_file():
                found.append(folder / name)
                break
    return list(dict.fromkeys(found))


def warning() -> str | None:
    """The message about a file that shadows this package; None if there is none."""
    files = shadowing()
    if not files:
        return None
    return (f"{files[0]} shadows this program, {LOADED}, for Python started in this directory:"
            " rename it")
