"""`processor check-config`: everything that a start would refuse, without a server and beforehand.

The settings are held against the unit too: systemd must not kill what the settings allow.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from processor import config, registry
from processor.cli import output
from processor.cli.shipped import shipped
from processor.errors import ConfigError
from processor.settings import Settings

_INSTALLED = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_LINE = re.compile(r"^(WatchdogSec|TimeoutStopSec)=(.+)$", re.MULTILINE)
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(min|ms|s|m|h|)")
_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


@click.command("check-config")
@click.option("--show", is_flag=True, help="Print all settings in force, passwords masked.")
@click.option("--unit", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The unit that will run it; by default the installed one, or ours.")
@output.json_option
@click.pass_context
def check_config(context: click.Context, show: bool, unit: Path | None, as_json: bool) -> None:
    """Check the settings; exit 78 and name every mistake with its line if there is any."""
    source = context.find_root().obj
    settings = config.configure(source)
    registry.register(settings.statements)
    _against_unit(settings, *_unit(unit))
    if as_json:
        output.record(config.as_mapping(settings))
    elif show:
        output.text(config.dump(settings))
    else:
        output.message(f"{source or 'the settings'}: good")


def _unit(given: Path | None) -> tuple[str, str]:
    """Name and text of the unit."""
    installed = (Path(folder) / "processor.service" for folder in _INSTALLED)
    path = given or next((each for each in installed if each.is_file()), None)
    if path is None:
        return "the unit", shipped("systemd", "processor.service")
    return str(path), path.read_text("utf-8", "replace")


def _against_unit(settings: Settings, name: str, text: str) -> None:
    spans = {key: _seconds(value) for key, value in _LINE.findall(text)}
    for setting, limit in (
        ("database.call_timeout", "WatchdogSec"),
        ("redis.timeout", "WatchdogSec"),
        ("interval", "WatchdogSec"),
        ("stop_timeout", "TimeoutStopSec"),
    ):
        value, most = _value(settings, setting), spans.get(limit)
        if most and value >= most:
            raise ConfigError(f"{setting}: {value:g} is not below {limit}={most:g} of {name}",
                              hint="change one of the two")  # fmt: skip


def _value(settings: Settings, name: str) -> float:
    value: object = settings
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, float)
    return value


def _seconds(text: str) -> float | None:
    """A span of systemd, such as 60, 1min or 1min 30s; None for infinity and what is no span."""
    spans = [(float(number), unit) for number, unit in _SPAN.findall(text)]
    return sum(number * _UNITS[unit] for number, unit in spans) if spans else None
