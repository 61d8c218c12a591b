"""What became of a batch: the record that `apply` hands to the drain, and its two exceptions."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from processor.apply.committer import Commit
from processor.ledger.dead_letters import Reason
from processor.ledger.outcomes import Recorded
from processor.transaction.entry import Entry


class Fenced(Exception):
    """Another processor owns the lane: drop the batch and become standby."""


class Contended(Exception):
    """Locks or serialization failures block the batch; no entry is at fault."""


@dataclass(slots=True)
class Outcome:
    """What became of the entries of a batch; each entry is in exactly one of the lists.

    `committed`: applied by this batch. `known`: the ledger already had their outcome. `clashing`:
    their id belongs to another payload. `failed`: refused, with the reason. `held`: they share a
    key with an earlier entry that failed. `paused`: their kind is paused, with the score of its
    pause (see `ownership.failing_alike`). `placed`: already among the lane's parked entries.
    `copies`: by entry id, further entries of the stream with the same id and payload. `former`:
    those known or clashing entries that the ledger has under their former ids only (rule 96).
    """

    committed: list[Entry] = field(default_factory=list)
    known: list[tuple[Entry, Recorded]] = field(default_factory=list)
    clashing: list[Entry] = field(default_factory=list)
    failed: list[tuple[Entry, Reason]] = field(default_factory=list)
    held: list[Entry] = field(default_factory=list)
    paused: list[tuple[Entry, float]] = field(default_factory=list)
    placed: list[Entry] = field(default_factory=list)
    copies: dict[str, list[str]] = field(default_factory=dict)
    former: list[Entry] = field(default_factory=list)
    commit: Commit | None = None

    def without_known(
        self, entries: Sequence[Entry], found: Mapping[str, Recorded], *, hold: bool
    ) -> list[Entry]:
        """Return the entries that the ledger does not have; record those it has as known.

        `found` is what the ledger has. With `hold`, dead letters hold their named keys (rule 27).
        """
        holding: set[str] = set()
        rest = []
        for entry in entries:
            recorded = found.get(entry.id)
            if recorded is None:
                rest.append(entry)
                continue
            if recorded.former:
                self.former.append(entry)
            if recorded.hash != entry.hash:
                self.clashing.append(entry)
            else:
                self.known.append((entry, recorded))
                # Its commit may be later than the last one whose position is known.
                self.commit = None
                # The dead letter of its former id holds the keys, not this entry.
                if recorded.outcome == "dead" and hold and not recorded.former:
                    # Dead-lettered before a crash; it still blocks its keys.
                    holding.add(entry.id)
                    rest.append(entry)
        return self.without_followers(rest, holding)

    @property
    def held_keys(self) -> set[str]:
        """The keys of the entries that failed or are held so far."""
        return {key for entry in (*(e for e, _ in self.failed), *self.held) for key in entry.keys}

    def without_followers(
        self, entries: Sequence[Entry], failed: Container[str], held_keys: Iterable[str] = ()
    ) -> list[Entry]:
        """Return the entries that are free to be applied; hold those behind a failed one by key.

        `failed` are ids; their entries are left out as well. `held_keys` are those of earlier
        entries.
        """
        held_keys = set(held_keys)
        free: list[Entry] = []
        for entry in entries:
            if entry.id in failed:
                held_keys.update(entry.keys)
            elif entry.keys and not held_keys.isdisjoint(entry.keys):
                held_keys.update(entry.keys)
                self.held.append(entry)
            else:
                free.append(entry)
        return free
