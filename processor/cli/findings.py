"""Prints findings, one line per check: level, subject, what was found, what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict

from processor.admin.findings import FAIL, OK, WARN, Finding
from processor.cli import output

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def show(findings: Iterable[Finding], as_json: bool) -> int:
    """Print findings as they arrive; returns exit code 1 if any failed."""
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
    # Imported late, as in `output`: a pipe does not need it.
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{finding.level:<4}", _COLOURS[finding.level]), "  ")
    Console(highlight=False).print(line.append(output.clean(words)))
