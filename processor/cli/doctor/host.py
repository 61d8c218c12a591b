"""`doctor`, this machine: settings, program, clocks, and who works for the buffer."""

from __future__ import annotations

import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

from processor.cli import shadow, unit
from processor.cli.doctor.finding import FAIL, OK, WARN, Finding
from processor.config.settings import Settings
from processor.version import __version__

_DIFFERS, _APART = 1.0, 30.0
_PATIENCE = 2.0
_WELL = frozenset({"running", "standby"})


def settings_and_program(settings: Settings, source: str | None) -> Iterator[Finding]:
    """What can be told without a server."""
    yield _finding("settings", OK, f"good, from {source or 'environment and defaults'}")
    if source is not None:
        yield _readable(Path(source))
    for problem in unit.contradictions(settings):
        yield _finding("unit", FAIL, problem, "change one of the two")
    version = ".".join(map(str, sys.version_info[:3]))
    yield _finding("program", OK, f"{__version__} from {shadow.LOADED}, Python {version}")
    if shadowed := shadow.warning():
        yield _finding("shadow", FAIL, shadowed)
    else:
        yield _finding("shadow", OK, "no processor.py stands in the way")
    if util.find_spec("hiredis") is None:
        yield _finding("hiredis", WARN, "missing: replies of Redis are read by slow code",
                       "pip install hiredis")


def _finding(check: str, level: str, found: str, remedy: str = "") -> Finding:
    return Finding("host", check, level, found, remedy)


def _readable(path: Path) -> Finding:
    text = path.read_text("utf-8", "replace")
    if path.stat().st_mode & stat.S_IROTH and "password" in text.lower():
        return _finding("secrets", WARN, f"{path} speaks of a password and everybody may read it",
                        "chmod o-r, or keep passwords in the environment")
    return _finding("secrets", OK, f"{path} tells no password to everybody")


def clock(name: str, ask: Callable[[], float]) -> Finding:
    """How far the clock of a server is from this machine's, by one question."""
    asked = time.time()
    theirs = ask()
    answered = time.time()
    apart = theirs - (asked + answered) / 2
    sure = abs(apart) - (answered - asked) / 2
    text = f"{name} is {abs(apart):.3f} s {'ahead' if apart > 0 else 'behind'}"
    level = FAIL if sure > _APART else WARN if sure > _DIFFERS else OK
    return _finding("clock", level, text, "" if level == OK else "let all machines use NTP")


def processors(settings: Settings, told: list[dict[str, Any]]) -> Iterator[Finding]:
    """Who works for this buffer, and whether its pages answer."""
    if not told:
        yield _finding("processors", WARN, "none has told anything for 30 s",
                       "start one: `processor run`")
        return
    for each in told:
        state = each["background_processor"]
        reason = f" ({state['reason']})" if state["reason"] else ""
        level = OK if state["status"] in _WELL else WARN
        yield _finding("processors", level, f"{each['instance']} is {state['status']}{reason}")
    versions = sorted({str(each["version"]) for each in told} | {__version__})
    if len(versions) > 1:
        yield _finding("versions", WARN, f"{', '.join(versions)} work side by side",
                       "finish the roll-out")
    yield _pages(settings.health.bind)


def _pages(bind: str) -> Finding:
    if not bind:
        return _finding("health", WARN, "health.bind is empty: no page to watch",
                        "set it, or mount processor.web in the application")
    try:
        with urllib.request.urlopen(f"http://{bind}/health", timeout=_PATIENCE) as answer:
            return _finding("health", OK, f"http://{bind}/health answers {answer.status}")
    except urllib.error.HTTPError as error:
        return _finding("health", FAIL, f"http://{bind}/health answers {error.code}",
                        "see `processor status`")
    except (OSError, ValueError):
        return _finding("health", WARN, f"http://{bind}/health does not answer here",
                        "if a processor runs on this machine, see who has the port")


