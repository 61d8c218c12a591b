"""Where an exception was raised, described without its text, which may hold values (rule 19)."""

from __future__ import annotations

import os
from collections.abc import Iterator

_DEEPEST = 6


def place(error: BaseException) -> str:
    """The class of an exception and the lines that led to it, the innermost first."""
    lines = [f"{file}:{line}" for file, line, _ in _frames(error)]
    return f"{type(error).__name__} at {_path(lines)}"


def described(error: BaseException, text: str = "") -> str:
    """The same with the names of the functions, and `text` after the class.

    The caller passes the text of the exception only if it is known to hold no values.
    """
    lines = [f"{file}:{line} {function}" for file, line, function in _frames(error)]
    quoted = f": {text}" if text else ""
    return f"{type(error).__name__}{quoted} at {_path(lines) or 'an unknown place'}"


def _path(lines: list[str]) -> str:
    return " < ".join(reversed(lines[-_DEEPEST:]))


def _frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """File name, line and function of each frame of the traceback, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield os.path.basename(code.co_filename), trace.tb_lineno, code.co_name
        trace = trace.tb_next
