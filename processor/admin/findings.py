"""The result of one check: ok, warn or fail, with the remedy. `verify` and `doctor` make these."""

from __future__ import annotations

from dataclasses import dataclass

from processor.errors import ProcessorError

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `remedy` is empty where nothing needs to be done."""

    section: str
    check: str
    level: str
    found: str
    remedy: str = ""


def remedy_for(error: ProcessorError, setting: str) -> str:
    """What to do about a server that could not be used; `setting` holds its address."""
    if error.hint:
        return error.hint
    # FATAL comes from PostgreSQL itself: the server runs and refused the session.
    return f"check {setting}" if "FATAL:" in str(error) else f"start it, or check {setting}"
