"""The systemd units: checked by the tools of systemd, and compared with the settings they name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from processor.config import loader
from processor.config.settings import Settings

UNITS = Path(__file__).resolve().parents[2] / "systemd"
NAMES = ["processor.service", "processor@.service"]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def values(name: str, key: str) -> list[str]:
    """All values that a unit gives for `key`."""
    return re.findall(rf"^{key}=(.*)$", (UNITS / name).read_text(), re.MULTILINE)


def analyze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=cwd, capture_output=True, text=True, timeout=30
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with our program replaced by one that every machine has."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/bin/processor", "/bin/true"))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_a_unit_without_a_warning(name: str, installed: Path) -> None:
    result = analyze("verify", f"./{name}", cwd=installed)

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@needs_systemd
def test_systemd_reports_a_wrong_line_in_a_unit(installed: Path) -> None:
    unit = installed / NAMES[0]
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=gently"))

    assert "kill mode" in analyze("verify", f"./{NAMES[0]}", cwd=installed).stderr


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_the_security_score_of_a_unit_is_at_most_one_and_a_half_of_ten(
    name: str, installed: Path
) -> None:
    result = analyze("security", "--offline=true", "--threshold=15", f"./{name}", cwd=installed)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_program_accepts_the_commands_of_a_unit(name: str, tmp_path: Path) -> None:
    lines = values(name, "ExecStart") + values(name, "ExecReload")
    ours = [line.split()[1:] for line in lines if line.startswith("/usr/bin/processor ")]
    assert [words[0] for words in ours] == ["run", "check-config"]

    for words in ours:
        missing = [word.replace("/etc/processor", str(tmp_path)) for word in words]
        result = subprocess.run([sys.executable, "-m", "processor", *missing], cwd=UNITS.parent,
                              capture_output=True, text=True, timeout=30)  # fmt: skip
        # 78: the settings are wrong; a wrong command line would be 2.
        assert result.returncode == 78, result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_times_of_a_unit_fit_the_default_settings(name: str) -> None:
    settings = Settings()

    longest = max(settings.database.call_timeout, settings.redis.timeout, settings.interval)
    assert float(values(name, "WatchdogSec")[0]) > longest
    assert float(values(name, "TimeoutStopSec")[0]) > settings.stop_timeout + 10


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_restarts_after_anything_but_wrong_settings(name: str) -> None:
    assert values(name, "Restart") == ["always"]
    assert values(name, "RestartPreventExitStatus") == ["78"]
    assert values(name, "StartLimitIntervalSec") == ["0"]


def test_an_instance_differs_from_the_service_only_in_its_queues_and_its_port() -> None:
    plain, instance = (
        [line for line in (UNITS / name).read_text().splitlines() if line and line[0] not in "#"]
        for name in NAMES
    )

    assert [line for line in instance if line not in plain] == [
        "Description=processor: drains the queues %i from Redis into PostgreSQL",
        "Environment=PROCESSOR_DRAIN=%i",
        "Environment=PROCESSOR_HEALTH_BIND=",
    ]
    assert [line for line in plain if line not in instance] == [
        "Description=processor: drains buffered transactions from Redis into PostgreSQL"
    ]


def test_an_instance_drains_the_queues_of_its_name_and_does_not_listen() -> None:
    environ = dict(pair.split("=", 1) for pair in values(NAMES[1], "Environment"))
    environ = {name: text.replace("%i", "high:default") for name, text in environ.items()}
    settings = loader.load({}, environ)

    assert settings.drain == ("high", "default")
    assert settings.health.bind == ""
