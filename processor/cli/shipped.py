"""Files that are installed with the program: the sample settings and the systemd units."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import processor
from processor.errors import ProcessorError


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
