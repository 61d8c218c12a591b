"""What became of a batch: what `apply` hands on, and what concerns the batch as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from processor.apply.committer import Commit
from processor.ledger.dead_letters import Reason
from processor.ledger.outcomes import Recorded
from processor.transaction.entry import Entry


class Fenced(Exception):
    """Another processor owns the lane; drop the batch and become standby."""


class Contended(Exception):
    """Locks or serialization stand in the way; never the entries' fault."""


class Systemic(Exception):
    """The server reports trouble of its own (class XX)."""


@dataclass(slots=True)
class Outcome:
    """What became of the entries of a batch; every entry is in exactly one place."""

    committed: list[Entry] = field(default_factory=list)
    known: list[tuple[Entry, Recorded]] = field(default_factory=list)
    clashing: list[Entry] = field(default_factory=list)
    failed: list[tuple[Entry, Reason]] = field(default_factory=list)
    held: list[Entry] = field(default_factory=list)
    placed: list[Entry] = field(default_factory=list)
    copies: dict[str, list[str]] = field(default_factory=dict)
    commit: Commit | None = None

    @property
    def ended(self) -> list[Entry]:
        """Entries whose outcome is in the ledger."""
        return [*self.committed, *(entry for entry, _ in self.known)]

    @property
    def keyless(self) -> bool:
        """Whether nothing that failed or was known has a key behind which others wait."""
        troubled = [*(e for e, _ in self.failed), *self.held, *(e for e, _ in self.known)]
        return not any(entry.keys for entry in troubled)
