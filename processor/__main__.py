"""`python -m processor`: the command line, where the script `processor` is not on the path."""

from __future__ import annotations

import sys

from processor.cli import main, output, shadow

if __name__ == "__main__":
    if problem := shadow.warning():
        output.message(problem)
    sys.exit(main())
