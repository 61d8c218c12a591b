"""Where a defect of the program happened, told without its words, which may hold values."""

from __future__ import annotations

import os

_DEEPEST = 6


def place(error: BaseException) -> str:
    """The class of an exception and the lines that led to it, the innermost first."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' < '.join(reversed(places[-_DEEPEST:]))}"
