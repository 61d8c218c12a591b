"""Who waits behind whom: pure rules of keys (rules 25 and 26).

A transaction that failed holds the keys that its producer named; a later one that shares a key
waits behind it, and holds its own keys in turn. Nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Keyed(Protocol):
    """Anything with the keys that its producer named."""

    @property
    def keys(self) -> tuple[str, ...]: ...


K = TypeVar("K", bound=Keyed)


def split(
    entries: Iterable[K], blocked: Callable[[K, str], bool] = lambda entry, key: False
) -> tuple[list[K], list[K]]:
    """Part entries into those that may run and those that wait, in order.

    An entry waits if one of its keys is `blocked` for it or is a key of an earlier one that waits.
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
    """Pairs (later, earlier) of places in a batch that share a key, nearest earlier one each.

    The nearest is enough: waiting is handed on along the line.
    """
    last: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for place, entry in enumerate(entries):
        for key in entry.keys:
            if key in last:
                pairs.append((place, last[key]))
            last[key] = place
    return pairs
