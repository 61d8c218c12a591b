"""Compares what producers submitted with the tables: lost, doubled, reordered, torn.

Pure: `check` takes a history and the rows of the tables and returns `Findings`, which are empty if
every promise held. `workload` makes the histories and reads the tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Submitted:
    """A transaction as its producer knows it.

    `entry` is the entry id of its first acknowledged submit. It is empty for a delayed transaction
    and if the outcome of the submit is unknown. `parts` is the number of rows of its effect.
    `fails`: the transaction is made to fail at least once, so that keyless ones may overtake it.
    """

    id: str
    keys: tuple[str, ...] = ()
    lane: str = "default:0"
    entry: str = ""
    acked: bool = True
    parts: int = 2
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of an effect: its part, its place in the order, its PostgreSQL transaction."""

    id: str
    part: int
    position: int
    xid: int


@dataclass(frozen=True, slots=True)
class Known:
    """One row of the ledger."""

    id: str
    outcome: str
    xid: int
    entry: str


@dataclass(frozen=True, slots=True)
class Dead:
    """One dead letter."""

    id: str
    outcome: str = "dead"
    holds: bool = False


@dataclass(slots=True)
class Findings:
    """Ids by broken promise; `reordered` has (overtaker, overtaken)."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[tuple[str, str]] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        """Return the count and the first ids of each class."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return "  ".join(f"{name} {len(found)} {found[:8] or ''}" for name, found in named)


def check(
    history: Sequence[Submitted],
    effects: Iterable[Effect],
    ledger: Iterable[Known],
    dead: Iterable[Dead] = (),
    waiting: Collection[str] = (),
) -> Findings:
    """Return all broken promises. `waiting`: ids of transactions that are still in the buffer."""
    return _Check(history, effects, ledger, dead, set(waiting)).findings()


class _Check:
    def __init__(
        self,
        history: Sequence[Submitted],
        effects: Iterable[Effect],
        ledger: Iterable[Known],
        dead: Iterable[Dead],
        waiting: set[str],
    ) -> None:
        # Several submits of one id are one transaction; the first acknowledged one has its entry.
        self.submitted: dict[str, Submitted] = {}
        for one in history:
            before = self.submitted.get(one.id)
            if before is None or (one.acked and not before.acked):
                self.submitted[one.id] = one
        self.rows: dict[str, list[Effect]] = defaultdict(list)
        for effect in effects:
            self.rows[effect.id].append(effect)
        self.ledger = {row.id: row for row in ledger}
        self.dead = {letter.id: letter for letter in dead}
        self.waiting = waiting

    def findings(self) -> Findings:
        return Findings(
            lost=[i for i, one in self.submitted.items() if one.acked and self._is_lost(i)],
            doubled=[i for i, rows in self.rows.items() if self._is_doubled(i, rows)],
            reordered=[*self._by_key(), *self._by_lane()],
            torn=[i for i in self._everywhere() if self._is_torn(i)],
            phantom=[i for i in self._everywhere() if i not in self.submitted],
        )

    def _everywhere(self) -> list[str]:
        return list(dict.fromkeys([*self.rows, *self.ledger, *self.dead]))

    def _is_lost(self, i: str) -> bool:
        return i not in self.rows and i not in self.dead and i not in self.waiting

    def _is_doubled(self, i: str, rows: Sequence[Effect]) -> bool:
        letter = self.dead.get(i)
        return len({row.part for row in rows}) < len(rows) or (
            letter is not None and letter.outcome != "applied"
        )

    def _is_torn(self, i: str) -> bool:
        """Whether effect, ledger and dead letter contradict each other."""
        outcome = self.ledger[i].outcome if i in self.ledger else "none"
        letter = self.dead[i].outcome if i in self.dead else "none"
        if i in self.rows:
            return outcome != "applied" or self._is_partial(i)
        return outcome not in ("dead", "discarded") or letter != outcome

    def _is_partial(self, i: str) -> bool:
        rows, one = self.rows[i], self.submitted.get(i)
        whole = one is None or {row.part for row in rows} == set(range(one.parts))
        return not whole or {row.xid for row in rows} != {self.ledger[i].xid}

    # Order.

    def _entry(self, one: Submitted) -> tuple[int, int] | None:
        """Its place in the lane, from its producer's receipt or else from the ledger."""
        entry = one.entry or (self.ledger[one.id].entry if one.id in self.ledger else "")
        milliseconds, _, sequence = entry.partition("-")
        return (int(milliseconds), int(sequence)) if entry else None

    def _accepted(self) -> list[Submitted]:
        """Return the transactions in the order of acceptance, lane by lane."""
        placed = [(one.lane, entry, one) for one in self.submitted.values()
                  if (entry := self._entry(one)) is not None]  # fmt: skip
        return [one for _, _, one in sorted(placed, key=lambda each: each[:2])]

    def _position(self, i: str) -> int | None:
        return min((row.position for row in self.rows.get(i, ())), default=None)

    def _by_key(self) -> Iterator[tuple[str, str]]:
        """Transactions of a lane that share a key and were applied out of order."""
        lines: dict[tuple[str, str], list[Submitted]] = defaultdict(list)
        for one in self._accepted():
            for key in one.keys:
                lines[one.lane, key].append(one)
        for line in lines.values():
            yield from self._overtakers(line, blocking=True)

    def _by_lane(self) -> Iterator[tuple[str, str]]:
        """The same for all of a lane that neither fail nor wait behind a failed one."""
        lanes: dict[str, list[Submitted]] = defaultdict(list)
        held: dict[str, set[str]] = defaultdict(set)
        for one in self._accepted():
            if one.fails or not held[one.lane].isdisjoint(one.keys):
                held[one.lane].update(one.keys)
            else:
                lanes[one.lane].append(one)
        for line in lanes.values():
            yield from self._overtakers(line, blocking=False)

    def _overtakers(self, line: list[Submitted], *, blocking: bool) -> Iterator[tuple[str, str]]:
        last: tuple[int, str] = (-1, "")
        before = ""
        for one in line:
            position = self._position(one.id)
            if position is None:
                before = before or (one.id if blocking and self._holds(one.id) else "")
            elif before:
                yield one.id, before
            elif position < last[0]:
                yield last[1], one.id
            else:
                last = position, one.id

    def _holds(self, i: str) -> bool:
        """Whether it blocks its keys: it waits, or its dead letter holds them undecided."""
        letter = self.dead.get(i)
        return i in self.waiting or (
            letter is not None and letter.outcome == "dead" and letter.holds
        )
