"""The program: the script `processor`, or `python -m processor` where that is not on the path.

It starts here and not in `cli`, because Ctrl-C may also arrive while `cli` is being imported.
"""

from __future__ import annotations

import sys

try:
    from processor.cli.interrupt import InterruptGuard

    with InterruptGuard():
        from processor.cli import output, shadow
        from processor.cli.main import main
except KeyboardInterrupt:
    sys.exit(130)

__all__ = ["main"]

if __name__ == "__main__":
    if problem := shadow.warning():
        output.message(problem)
    sys.exit(main())
