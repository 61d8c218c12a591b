"""The program: the script `processor`, and `python -m processor` where that is not on the path.

It begins here and not in `cli`, since loading that can be interrupted as well.
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
