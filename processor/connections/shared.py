"""One object per process that works by the settings in force: the producer, the reader, ...

It is made when it is first used, again after `configure` took other settings, and again in a forked
child, where the connections of the previous one belong to the parent and are not closed (P6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from processor import forks
from processor.config import loader
from processor.config.settings import Settings


class Connected(Protocol):
    """An object with connections of its own, made from settings."""

    @property
    def settings(self) -> Settings:
        """The settings from which it was made."""

    def close(self) -> None:
        """Close the connections that are not in use; the next use opens others."""

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child."""


T = TypeVar("T", bound=Connected)


class Shared(Generic[T]):
    """Holds the object that all threads of this process share."""

    def __init__(self, make: Callable[[Settings], T]) -> None:
        self._make = make
        self._made: T | None = None
        forks.renew_with(self._renew)

    def current(self) -> T:
        """The object for the settings in force. Raises ConfigError if there are no valid ones."""
        forks.notice()
        settings = loader.current()
        made = self._made
        if made is None or made.settings is not settings:
            self.close()
            made = self._made = self._make(settings)
        return made

    def close(self) -> None:
        """Close the connections of the object, if it was made; its next use opens others."""
        if self._made is not None:
            self._made.close()

    def _renew(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.drop()
