"""Compares the time limits of the systemd unit with the settings.

systemd must not kill a processor for a delay that its settings permit: `check-config` rejects such
a combination and `doctor` reports it.
"""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

from processor.cli.shipped import shipped
from processor.config.settings import Settings

_INSTALLED = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_LINE = re.compile(r"^(WatchdogSec|TimeoutStopSec)=(.+)$", re.MULTILINE)
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(min|ms|s|m|h|)")
_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
_BELOW = (
    ("database.call_timeout", "WatchdogSec"),
    ("redis.timeout", "WatchdogSec"),
    ("interval", "WatchdogSec"),
    ("stop_timeout", "TimeoutStopSec"),
)


def contradictions(settings: Settings, path: Path | None = None) -> list[str]:
    """The settings that reach their limit in the unit: `path`, the installed or the shipped one."""
    path = path or installed()
    text = path.read_text("utf-8", "replace") if path else shipped("systemd", "processor.service")
    limits = {name: _seconds(value) for name, value in _LINE.findall(text)}
    found = []
    for setting, limit in _BELOW:
        value, most = attrgetter(setting)(settings), limits.get(limit)
        if most and value >= most:
            found.append(f"{setting}: {value:g} must be below {limit}={most:g} of"
                         f" {path or 'the shipped unit'}")
    return found


def installed() -> Path | None:
    """The unit that systemd reads on this machine, if any; drop-ins are ignored."""
    paths = (Path(folder) / "processor.service" for folder in _INSTALLED)
    return next((path for path in paths if path.is_file()), None)


def _seconds(text: str) -> float | None:
    """A systemd time span, such as 60, 1min or 1min 30s; None for infinity or another text."""
    spans = [(float(number), unit) for number, unit in _SPAN.findall(text)]
    return sum(number * _UNITS[unit] for number, unit in spans) if spans else None
