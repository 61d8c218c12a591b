"""Which entries wait behind which, by their keys (rules 25 and 26). Calls no server.

A failed transaction holds the keys that its producer named. A later transaction that shares a key
waits behind it, and holds its own keys in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Keyed(Protocol):
    """An object with the keys that its producer named."""

    @property
    def keys(self) -> tuple[str, ...]: ...


K = TypeVar("K", bound=Keyed)


def split(
    entries: Iterable[K], blocked: Callable[[K, str], bool] = lambda entry, key: False
) -> tuple[list[K], list[K]]:
    """Split entries into those that may run and those that wait, each in order.

    An entry waits if one of its keys is `blocked` for it, or belongs to an earlier waiting entry.
    """
    held_keys: set[str] = set()
    free: list[K] = []
    held: list[K] = []
    for entry in entries:
        if any(key in held_keys or blocked(entry, key) for key in entry.keys):
            held_keys.update(entry.keys)
            held.append(entry)
        else:
            free.append(entry)
    return free, held


def behind(entries: Sequence[K]) -> list[tuple[int, int]]:
    """Return pairs (later, earlier) of indexes of entries that share a key.

    The earlier one is the nearest with that key. That is enough, because it waits in turn behind
    the one before.
    """
    last: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for index, entry in enumerate(entries):
        for key in entry.keys:
            if key in last:
                pairs.append((index, last[key]))
            last[key] = index
    return pairs
