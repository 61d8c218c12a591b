"""Files that are installed with the program: sample settings, systemd units, pages of the guide."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import processor
from processor.errors import ProcessorError

_ORDER = ("concepts", "upgrading", "faq")


def shipped(folder: str, name: str) -> str:
    """The text of a file in `etc` or `systemd`. Raises ProcessorError if it is missing."""
    try:
        return resources.files(f"processor.{folder}").joinpath(name).read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        pass
    # In a checkout that is not installed, these directories are at the top.
    beside = Path(processor.__file__).resolve().parent.parent / folder / name
    try:
        return beside.read_text("utf-8")
    except OSError as error:
        raise ProcessorError(f"{folder}/{name} is missing from this installation: {error.strerror}",
                             hint="reinstall the package") from None


def guide() -> dict[str, str]:
    """The pages of the guide by topic, in the order in which a newcomer reads them."""
    found = {path.stem: path.read_text("utf-8")
             for path in (Path(processor.__file__).resolve().parent / "guide").glob("*.rst")}
    first = [name for name in _ORDER if name in found]
    return {name: found[name] for name in [*first, *sorted(found.keys() - set(first))]}
