"""Prints what setup.cfg requires, one requirement a line: python3 .ci/declared.py EXTRA ..."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def declared(*extras: str, lowest: bool = False) -> list[str]:
    """The requirements of the package and of these extras, or the lowest version of each."""
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    texts = [setup["options"]["install_requires"]]
    texts += [setup["options.extras_require"][extra] for extra in extras]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return [_pinned(line) for line in lines] if lowest else lines


def _pinned(requirement: str) -> str:
    """A constraint, which must not name extras."""
    name, _, version = requirement.partition(">=")
    return f"{name.partition('[')[0]}=={version}"


if __name__ == "__main__":
    print("\n".join(declared(*sys.argv[1:])))
