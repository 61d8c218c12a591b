"""Checks of this machine: settings, program, clocks, and the processors of the buffer."""

from __future__ import annotations

import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from pathlib import Path

from processor.admin.findings import FAIL, OK, WARN, Finding
from processor.admin.overview import PublishedState
from processor.cli import shadow, unit
from processor.config.settings import Settings
from processor.version import __version__

#: A clock that differs by so many seconds is a warning, or a failure.
_DIFFERS, _APART = 1.0, 30.0
_PAGE_TIMEOUT = 2.0
_HEALTHY = frozenset({"running", "standby"})


def settings_and_program(settings: Settings, source: str | None) -> Iterator[Finding]:
    """The checks that need no server. `source` is the settings file, if there is one."""
    yield _finding("settings", OK, f"valid, from {source or 'environment and defaults'}")
    if source is not None:
        yield _readable(Path(source))
    for problem in unit.contradictions(settings):
        yield _finding("unit", FAIL, problem, "change one of the two")
    version = ".".join(map(str, sys.version_info[:3]))
    yield _finding("program", OK, f"{__version__} from {shadow.LOADED}, Python {version}")
    if shadowed := shadow.warning():
        yield _finding("shadow", FAIL, shadowed)
    else:
        yield _finding("shadow", OK, "no processor.py shadows the package")
    if util.find_spec("hiredis") is None:
        yield _finding("hiredis", WARN, "missing: replies of Redis are parsed slowly",
                       "pip install hiredis")


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("host", check, level, found, remedy)


def _readable(path: Path) -> Finding:
    text = path.read_text("utf-8", "replace")
    if path.stat().st_mode & stat.S_IROTH and "password" in text.lower():
        return _finding("secrets", WARN, f"{path} mentions a password and every user can read it",
                        "chmod o-r, or keep passwords in the environment")
    return _finding("secrets", OK, f"{path} shows no password to every user")


def clock(name: str, read: Callable[[], float]) -> Finding:
    """The difference between the clock of a server, which `read` returns, and this machine's."""
    before = time.time()
    theirs = read()
    after = time.time()
    difference = theirs - (before + after) / 2
    certain = abs(difference) - (after - before) / 2
    text = f"{name} is {abs(difference):.3f} s {'ahead' if difference > 0 else 'behind'}"
    level = FAIL if certain > _APART else WARN if certain > _DIFFERS else OK
    return _finding("clock", level, text, "" if level == OK else "run NTP on all machines")


def processors(settings: Settings, states: Sequence[PublishedState]) -> Iterator[Finding]:
    """The processors of this buffer, their versions, and whether the health page responds."""
    if not states:
        yield _finding("processors", WARN, "none has reported in the last 30 s",
                       "start one with `processor run`")
        return
    for each in states:
        state = each["background_processor"]
        reason = f" ({state['reason']})" if state["reason"] else ""
        level = OK if state["status"] in _HEALTHY else WARN
        yield _finding("processors", level, f"{each['instance']} is {state['status']}{reason}")
    versions = sorted({str(each["version"]) for each in states} | {__version__})
    if len(versions) > 1:
        yield _finding("versions", WARN, f"{', '.join(versions)} run side by side",
                       "complete the upgrade")
    yield _pages(settings.health.bind)


def _pages(bind: str) -> Finding:
    if not bind:
        return _finding("health", WARN, "health.bind is empty: there is no health page",
                        "set it, or mount processor.web in the application")
    try:
        with urllib.request.urlopen(f"http://{bind}/health", timeout=_PAGE_TIMEOUT) as answer:
            return _finding("health", OK, f"http://{bind}/health responds with {answer.status}")
    except urllib.error.HTTPError as error:
        return _finding("health", FAIL, f"http://{bind}/health responds with {error.code}",
                        "see `processor status`")
    except (OSError, ValueError):
        return _finding("health", WARN, f"http://{bind}/health does not respond here",
                        "if a processor runs on this machine, check what uses the port")


