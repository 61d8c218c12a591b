"""Whether a file of the user's is found under our name, before this package or in its place.

The name of the package is a common one for a module: an application's own `processor.py` wins where
Python is started beside it. Whoever runs into that should be told the path, not left with an
AttributeError.
"""

from __future__ import annotations

import sys
from pathlib import Path

import processor

LOADED = Path(processor.__file__).resolve().parent


def shadowing(here: Path | None = None) -> list[Path]:
    """Files that a Python started here, or this one, finds before this package."""
    found = []
    for place in [here or Path.cwd(), *map(Path, sys.path)]:
        folder = place.resolve()
        if folder == LOADED.parent:
            break
        # A package of this name wins over a module beside it.
        for name in ("processor/__init__.py", "processor.py"):
            if (folder / name).is_file():
                found.append(folder / name)
                break
    return list(dict.fromkeys(found))


def warning() -> str | None:
    """What to say about it, if anything."""
    files = shadowing()
    if not files:
        return None
    return (f"{files[0]} is found before this program, which is {LOADED},"
            " by Python started here: rename it")
