"""What becomes of each entry of a batch, planned without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from processor.apply.committer import Commit
from processor.apply.outcome import Outcome
from processor.config.settings import Retry as RetryPolicy
from processor.connections.wal_position import Position
from processor.drain.settle_plan import POSSIBLY_APPLIED, Settlement, plan
from processor.ledger.dead_letters import Reason
from processor.ledger.outcomes import Recorded
from processor.transaction.entry import Entry

POLICY = RetryPolicy(attempts=3, delay=5.0, max_delay=300.0)
LOCKED = Reason("the parent row is missing", "23503")
UNIQUE = Reason("a duplicate", "23505")


def entry(number: int, *keys: str, **more: Any) -> Entry:
    made = Entry(f"{number}-0", f"id {number}", f"hash {number}", (), keys, b"")
    return msgspec.structs.replace(made, **more)


def planned(outcome: Outcome, *, hold: bool = True, **more: Any) -> Settlement:
    return plan(outcome, POLICY, hold=hold, jitter=lambda: 1.0, **more)


def ids(entries: Any) -> list[str]:
    return [each.id for each in entries]


# Retries and deaths.


@pytest.mark.parametrize(("failed", "wait"), [(0, 5.0), (1, 10.0)])
def test_an_entry_that_may_succeed_later_is_tried_again(failed: int, wait: float) -> None:
    made = planned(Outcome(failed=[(entry(1, attempt=failed), LOCKED)]))

    (retry,) = made.retries
    assert (retry.attempts, retry.wait, retry.reason) == (failed + 1, wait, LOCKED.text)
    assert made.deaths == []


@pytest.mark.parametrize(
    ("reason", "more"),
    [(UNIQUE, {}), (LOCKED, {"attempt": 2}), (LOCKED, {"attempts": 1}), (POSSIBLY_APPLIED, {})],
    ids=["it can only fail again", "its last attempt", "its own limit", "possibly applied"],
)
def test_an_entry_without_another_attempt_becomes_a_dead_letter(
    reason: Reason, more: dict[str, Any]
) -> None:
    made = planned(Outcome(failed=[(entry(1, **more), reason)]))

    (death,) = made.deaths
    assert (death.reason, death.attempts) == (reason, more.get("attempt", 0) + 1)
    assert not death.clashing
    assert made.retries == []


def test_the_second_payload_of_an_id_becomes_a_dead_letter_of_its_own() -> None:
    made = planned(Outcome(clashing=[entry(1, "k")]))

    (death,) = made.deaths
    assert death.clashing
    assert death.reason.text == "the id was used before for another payload"
    assert made.blocking == []
    assert made.leaving([]) == ["1-0"]


@pytest.mark.parametrize("held", [True, False])
def test_an_entry_that_would_overwrite_a_parked_one_clashes(held: bool) -> None:
    outcome = Outcome(held=[entry(1), entry(2)]) if held else (
        Outcome(failed=[(entry(1), LOCKED), (entry(2), LOCKED)]))  # fmt: skip

    made = planned(outcome, parked_hashes={"id 1": "another hash", "id 2": "hash 2"})

    assert ids(made.clashing) == ids(d.entry for d in made.deaths) == ["id 1"]
    assert ids(made.held if held else (r.entry for r in made.retries)) == ["id 2"]


# Keys.


def test_a_dead_letter_holds_its_keys_unless_the_setting_releases_them() -> None:
    outcome = Outcome(failed=[(entry(1, "k"), UNIQUE), (entry(2), UNIQUE)])

    assert ids(planned(outcome).blocking) == ["id 1"]
    assert planned(outcome, hold=False).blocking == []


def test_an_entry_that_died_before_a_crash_still_holds_its_keys() -> None:
    known = [(entry(1, "k"), Recorded("dead", "hash 1")), (entry(2, "k"), Recorded("applied", ""))]

    made = planned(Outcome(known=known))

    assert ids(made.blocking) == ["id 1"]
    assert planned(Outcome(known=known), hold=False).blocking == []


@pytest.mark.parametrize(
    ("outcome", "touches"),
    [
        (Outcome(committed=[entry(1, "k")]), False),
        (Outcome(clashing=[entry(1, "k")], placed=[entry(2, "k")]), False),
        (Outcome(failed=[(entry(1), LOCKED), (entry(2), UNIQUE)], held=[entry(3)]), False),
        (Outcome(failed=[(entry(1, "k"), LOCKED)]), True),
        (Outcome(failed=[(entry(1, "k"), UNIQUE)]), True),
        (Outcome(held=[entry(1, "k")]), True),
        (Outcome(known=[(entry(1, "k"), Recorded("applied", "hash 1"))]), True),
    ],
    ids=["committed", "clashing", "no keys", "retried", "dead", "held", "known"],
)
def test_later_entries_depend_on_a_plan_that_touches_keys(outcome: Outcome, touches: bool) -> None:
    assert planned(outcome).touches_keys is touches


# What leaves the stream.


def test_what_is_decided_leaves_with_its_copies_and_what_could_not_be_parked_stays() -> None:
    made = planned(Outcome(
        committed=[entry(1)], known=[(entry(2), Recorded("applied", "hash 2"))],
        failed=[(entry(3), LOCKED), (entry(4), UNIQUE), (entry(5, "k"), UNIQUE)],
        held=[entry(6, "k"), entry(7, "k")], placed=[entry(8)], copies={"1-0": ["11-0", "12-0"]},
    ))  # fmt: skip

    leaving = made.leaving([made.retries[0].entry, made.held[0]])

    assert leaving == ["3-0", "6-0", "4-0", "5-0", "1-0", "11-0", "12-0", "2-0", "8-0"]
    assert ids(made.decided) == ["id 1", "id 2", "id 4", "id 5"]


# The commit note.


def position() -> Position:
    return Position("system", 1, 16)


def test_the_note_names_what_was_committed_from_the_page() -> None:
    page = [entry(1), entry(2, delayed=True), entry(3), entry(4)]
    made = planned(Outcome(
        committed=page[:2], known=[(page[2], Recorded("dead", "hash 3"))],
        failed=[(page[3], UNIQUE)], commit=Commit(position(), ""),
    ))  # fmt: skip

    note = made.note("buffer", 7.0, page)

    assert (note.buffer, note.at, note.position) == ("buffer", 7.0, position())
    assert [e.entry_id in note.entries for e in page] == [True, True, False, False]
    assert note.also == {"id 2"}, "its entry id is unknown to the receipt"
    assert note.dead == {"id 4": ("4-0", UNIQUE.text)}


def test_the_note_of_a_clash_does_not_call_it_committed() -> None:
    first, second = entry(1), entry(2, id="id 1")
    made = planned(Outcome(committed=[first], clashing=[second]))

    note = made.note("buffer", 7.0, [first, second])

    assert [e.entry_id in note.entries for e in (first, second)] == [True, False]


def test_the_note_of_parked_entries_goes_by_transaction_id() -> None:
    made = planned(Outcome(committed=[entry(1)]))

    note = made.note("buffer", 7.0, None)

    assert note.also == {"id 1"}
    assert not note.entries.text


@pytest.mark.parametrize(
    ("outcome", "noted"),
    [
        (Outcome(), False),
        (Outcome(failed=[(entry(1), LOCKED)], held=[entry(2)], placed=[entry(3)]), False),
        (Outcome(known=[(entry(1), Recorded("dead", "hash 1"))]), False),
        (Outcome(known=[(entry(1), Recorded("applied", "hash 1"))]), True),
        (Outcome(failed=[(entry(1), UNIQUE)]), True),
    ],
    ids=["nothing", "parked", "known as dead", "known as applied", "dead"],
)
def test_there_is_a_note_if_something_was_committed(outcome: Outcome, noted: bool) -> None:
    assert planned(outcome).has_note is noted
