"""What an examination found: one line a check, ok, warn or fail, with what to do about it.

`verify` and `doctor` make these and print them alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from processor.cli import output
from processor.errors import ProcessorError

OK, WARN, FAIL = "ok", "warn", "fail"
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; the remedy is empty where nothing is to be done."""

    section: str
    check: str
    level: str
    found: str
    remedy: str = ""


def remedy_for(error: ProcessorError, setting: str) -> str:
    """What to do about a server that `setting` names and that gave no session."""
    if error.hint:
        return error.hint
    # PostgreSQL's own word: it runs, and refused us for what it said.
    return f"see {setting}" if "FATAL:" in str(error) else f"start it, or see {setting}"


def show(findings: Iterable[Finding], as_json: bool) -> int:
    """Print findings as they come; 1 if any failed."""
    code = output.OK
    for finding in findings:
        if finding.level == FAIL:
            code = output.FAILED
        if as_json:
            output.record(asdict(finding))
        else:
            _line(finding)
    return code


def _line(finding: Finding) -> None:
    remedy = f": {finding.remedy}" if finding.remedy else ""
    words = f"{finding.section} {finding.check}: {finding.found}{remedy}"
    if not output.terminal(sys.stdout):
        output.line(f"{finding.level:<4}  {words}")
        return
    # Late, as in `output`: a pipe needs none of it.
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{finding.level:<4}", _COLOURS[finding.level]), "  ")
    Console(highlight=False).print(line.append(output.clean(words)))
