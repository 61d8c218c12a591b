"""The observatory of the demo: its tables, and the transactions that one telescope submits.

`producers` takes an endless series of transactions from here, `stage` the tables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from processor.transaction.builder import Transaction
from processor.transaction.ids import new_id

TELESCOPES = ("condor", "vicuna", "flamingo")
TARGETS = ("Orion KL", "M 31", "Sgr A*", "NGC 253", "30 Doradus", "Mars")

# `effect` deliberately has no primary key: a transaction applied twice must leave two rows.
TABLES = """\
CREATE TABLE telescope (
    name text PRIMARY KEY,
    status text NOT NULL DEFAULT 'idle',
    azimuth double precision,
    elevation double precision,
    observations integer NOT NULL DEFAULT 0
);
CREATE TABLE observation (
    id uuid PRIMARY KEY,
    telescope text NOT NULL REFERENCES telescope,
    target text NOT NULL,
    state text NOT NULL,
    files integer NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0
);
CREATE TABLE raw_file (
    id uuid PRIMARY KEY,
    observation uuid NOT NULL REFERENCES observation,
    path text NOT NULL,
    bytes bigint NOT NULL
);
CREATE TABLE night_log (
    id uuid PRIMARY KEY,
    words text NOT NULL,
    stars integer NOT NULL DEFAULT 0
);
CREATE TABLE effect (
    transaction uuid NOT NULL,
    key text NOT NULL,
    number integer NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY
);
INSERT INTO telescope (name) VALUES {telescopes};
""".replace("{telescopes}", ", ".join(f"('{name}')" for name in TELESCOPES))


class Telescope:
    """One telescope: it observes, writes raw files, reports where it points, and observes again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._random = random.Random(name)
        self._number = 0

    def transactions(self) -> Iterator[Transaction]:
        """An endless series of its transactions."""
        while True:
            yield from self._observation()

    def _observation(self) -> Iterator[Transaction]:
        observation = new_id()
        key = f"observation:{observation}"
        yield self._started(observation, key)
        yield self._pointing("observing")
        for number in range(self._random.randint(6, 12)):
            yield self._files(observation, key, number)
        yield self._finished(observation, key)
        yield self._pointing("idle")

    def _started(self, observation: str, key: str) -> Transaction:
        target = self._random.choice(TARGETS)
        return (
            self._transaction(key)
            .insert("observation", {"id": observation, "telescope": self.name, "target": target,
                                    "state": "running"})
            .update("telescope", add={"observations": 1}, where={"name": self.name}, expect=1)
        )  # fmt: skip

    def _files(self, observation: str, key: str, number: int) -> Transaction:
        sizes = [self._random.randint(1, 10**9) for _ in range(self._random.randint(1, 3))]
        rows = [
            {"id": new_id(), "observation": observation, "bytes": size,
             "path": f"/raw/{self.name}/{observation}/{number:04}-{part}.fits"}
            for part, size in enumerate(sizes)
        ]  # fmt: skip
        added = {"files": len(sizes), "bytes": sum(sizes)}
        return (
            self._transaction(key)
            .insert("raw_file", rows=rows)
            .update("observation", add=added, where={"id": observation}, expect=1)
        )

    def _finished(self, observation: str, key: str) -> Transaction:
        return self._transaction(key).update(
            "observation", {"state": "finished"}, where={"id": observation, "state": "running"},
            expect=1,
        )  # fmt: skip

    def _pointing(self, status: str) -> Transaction:
        values = {"status": status, "azimuth": self._random.uniform(0, 360),
                  "elevation": self._random.uniform(20, 89)}  # fmt: skip
        return self._transaction(f"telescope:{self.name}", queue="high").update(
            "telescope", values, where={"name": self.name}, expect=1
        )

    def _transaction(self, key: str, queue: str | None = None) -> Transaction:
        """A transaction that inserts its id and its number in the series into `effect`."""
        self._number += 1
        made = Transaction(key=key, queue=queue)
        return made.insert("effect", {"transaction": made.id, "key": key, "number": self._number})
