"""Runs the tests with the lowest and with the newest versions that setup.cfg admits.

    python3 .ci/versions.py                              on each Python that is found
    python3 .ci/versions.py lowest-3.11 newest-3.13      only these
    python3 .ci/versions.py lowest-3.11 -- tests/sql     only these tests; pytest's arguments

Pythons from 3.11 to 3.13 are found on PATH and among those of pyenv. Each run takes about six
minutes. Left out are the tests of the source (tests/house) and those that kill and restart servers
(tests/chaos), which .ci/run runs with the pinned versions.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from declared import declared

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
TESTS = ("--ignore", "tests/house", "--ignore", "tests/chaos")


def program(version: str) -> str | None:
    """A Python of this version, if there is one that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    installed = sorted(pyenv.glob(f"{version}.*/bin/python"))
    for each in (f"python{version}", "python3", *map(str, installed)):
        asked = [each, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                return each
        except OSError:
            continue
    return None


def install(python: str, directory: Path, lowest: bool) -> bool:
    """A new environment with this checkout, and with what the tests need in its newest versions."""
    constraints = directory / "constraints.txt"
    pip = [str(directory / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([python, "-m", "venv", "--clear", str(directory)]).returncode:
        return False
    constraints.write_text("\n".join(declared("embedded", lowest=True)) if lowest else "")
    # Wheels only: people install what setup.cfg admits without a compiler.
    return not subprocess.run(
        [*pip, "--only-binary", ":all:", "--constraint", str(constraints),
         "--editable", ".[embedded,tests]"], cwd=ROOT,
    ).returncode  # fmt: skip


def run(name: str, arguments: list[str]) -> str:
    """How the tests went with these versions, in words."""
    versions, _, version = name.partition("-")
    python = program(version)
    if python is None:
        return "not run: no such Python"
    directory = ROOT / ".ci" / "venvs" / name
    if not install(python, directory, versions == "lowest"):
        return "failed: cannot be installed"
    workers = os.environ.get("WORKERS", "3")
    code = subprocess.run(
        [str(directory / "bin" / "python"), "-m", "pytest", "-n", workers, "--dist", "loadgroup",
         *(arguments or TESTS)], cwd=ROOT,
    ).returncode  # fmt: skip
    return f"failed: pytest exit code {code}" if code else "passed"


def main(*arguments: str) -> int:
    names = list(itertools.takewhile(lambda each: each != "--", arguments))
    given = list(arguments[len(names) + 1 :])
    every = [f"{versions}-{python}" for python in PYTHONS for versions in ("lowest", "newest")]
    if unknown := set(names) - set(every):
        print(f"no such versions: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
        return 2
    results = {name: run(name, given) for name in names or every}
    for name, result in results.items():
        print(f"{name:12} {result}")
    return int(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
