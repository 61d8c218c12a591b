"""Type checkers see a typing error in the user's code, and find none in correct code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.harness.process import ROOT

CORRECT = """\
import processor

transaction = processor.Transaction(key="account-7").insert("orders", {"id": processor.new_id()})
receipt = processor.submit(transaction)
reached = receipt.wait(until="replicated", timeout=1.0)
processor.event.set()
if reached.state == "replicated":
    print(dict(reached.replicas))
for row in processor.read("account", {"id": 7}, after=receipt):
    print(row["balance"], row.source, row.complete)
"""

#: Each line is one error.
WRONG = """\
processor.sumbit(transaction)
processor.Transaction().insrt("orders", {})
processor.submit([transaction])
receipt.wait(until="done")
processor.event.sett()
if receipt.status().state == "comitted": print("never")
receipt.statuss()
"""


def mypy(file: Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary",
         f"--cache-dir={file.parent / 'cache'}", file],
        capture_output=True, text=True, check=False, cwd=file.parent,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
    ).stdout  # fmt: skip


def pyright(file: Path) -> str:
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (file.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    program = Path(sys.executable).with_name("basedpyright")
    said = subprocess.run([program, "--level", "error", file], capture_output=True, text=True,
                          check=False, cwd=file.parent).stdout  # fmt: skip
    return "".join(f"{line}\n" for line in said.splitlines() if " - error: " in line)


CHECKERS = [
    pytest.param(check, marks=pytest.mark.skipif(
        find_spec(package) is None, reason=f"install the extra `lint` for {package}"))
    for check, package in ((mypy, "mypy"), (pyright, "basedpyright"))
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKERS)
def test_correct_code_has_no_error_and_each_wrong_line_has_one(
    check: Callable[[Path], str], tmp_path: Path
) -> None:
    file = tmp_path / "application.py"
    file.write_text(CORRECT)
    assert check(file) == ""

    file.write_text(CORRECT + WRONG)
    said = check(file)
    first = len(CORRECT.splitlines()) + 1
    wanted = set(range(first, first + len(WRONG.splitlines())))
    assert {int(found) for found in re.findall(r"application\.py:(\d+)", said)} == wanted, said
