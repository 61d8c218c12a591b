"""Completion of commands and options by the user's shell.

The shell calls the program again, with a variable that says what to print: click's script for the
shell, or the words that may stand at the cursor.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class, shell_complete

PROGRAM = "processor"
SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_PROCESSOR_COMPLETE"


def script(command: click.Command, shell: str) -> str:
    """The script that a shell reads to complete this program's commands."""
    found = get_completion_class(shell)
    assert found is not None, shell
    return found(command, {}, PROGRAM, _VARIABLE).source()


def answer(command: click.Command) -> int | None:
    """Answer a shell that asks for completions; None if none asks. Returns the exit code."""
    asked = os.environ.get(_VARIABLE)
    return None if asked is None else shell_complete(command, {}, PROGRAM, _VARIABLE, asked)
