"""One object per process that works by the settings in force: the producer, the reader, ...

It is made when it is first used, and again after `configure` took other settings. In a forked child
it drops the connections that it inherited; they belong to the parent and are not closed (P6).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

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
        os.register_at_fork(after_in_child=self._after_fork)

    def current(self) -> T:
        """The object for the settings in force. Raises ConfigError if there are no valid ones."""
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

    def _after_fork(self) -> None:
        if self._made is not None:
            self._made.drop()
