"""Entries that wait in the stream for replicas: released in order, in bounded memory (rule 22)."""

from __future__ import annotations

import itertools

from processor.connections.wal_position import Position
from processor.ownership.replication_backlog import Range, ReplicationBacklog


def at(lsn: int) -> Position:
    return Position("7", 1, lsn)


def due(withheld: ReplicationBacklog, lsn: int) -> list[Range]:
    spans: list[Range] = []
    while (span := withheld.due(lambda position: position.lsn <= lsn)) is not None:
        spans.append(span)
    return spans


def test_ranges_are_released_in_commit_order_and_memory_stays_flat() -> None:
    withheld = ReplicationBacklog()
    for n in range(50_000):
        withheld.add(at(n), f"{n}-0", f"{n}-9")
    assert len(withheld.ranges) <= 2_000
    assert withheld.last == "49999-9"

    ranges = due(withheld, 25_000)

    assert ranges[0].first == "0-0"
    assert all(a.last < b.first or int(a.last[:-2]) + 1 == int(b.first[:-2])
               for a, b in itertools.pairwise(ranges))  # fmt: skip
    assert int(ranges[-1].last[:-2]) <= 25_000
    rest = due(withheld, 50_000)
    assert rest[-1].last == "49999-9"
    assert not withheld


def test_single_entries_are_released_in_order_and_their_number_is_bounded() -> None:
    withheld = ReplicationBacklog()
    withheld.add(at(1), "1-0", "9-0")
    for n in range(10, 100_010):
        withheld.add_single(at(n), f"{n}-0")
    assert len(withheld.single) <= 20_000
    asked = []

    def has(position: Position) -> bool:
        asked.append(position)
        return position.lsn <= 12

    assert withheld.due_singles(has, 500) == ["10-0", "11-0", "12-0"]
    assert len(asked) == 4, "the drain examines every waiting entry in each pass"
    # An entry that was not remembered may lie in the range.
    assert due(withheld, 100_008) == []
    assert withheld.is_complete, "the head was read again too early"
    assert [span.first for span in due(withheld, 100_009)] == ["1-0"]
    assert not withheld.is_complete
