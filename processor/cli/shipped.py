"""Files that travel with the program: the sample of the settings, the units for systemd."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import processor
from processor.errors import ProcessorError


def shipped(folder: str, name: str) -> str:
    """The text of a file of `etc` or `systemd`."""
    try:
        return resources.files(f"processor.{folder}").joinpath(name).read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        pass
    # A checkout that was not installed: there they lie at the top, where one looks for them.
    beside = Path(processor.__file__).resolve().parent.parent / folder / name
    try:
        return beside.read_text("utf-8")
    except OSError as error:
        raise ProcessorError(f"{folder}/{name} did not come with this program: {error.strerror}",
                             hint="install the package anew") from None
