"""What failures say about a lane, judged without a server."""

from __future__ import annotations

import pytest

from processor.apply.outcome import Outcome
from processor.ledger.dead_letters import Reason
from processor.ownership.lane_health import SYSTEMIC, LaneHealth
from processor.transaction.entry import Entry

ORDINARY = 100


def entries(count: int, first: int = 0) -> list[Entry]:
    numbers = range(first, first + count)
    return [Entry(f"{n}-0", f"id {n}", f"hash {n}", (), (), b"") for n in numbers]


def failing(batch: list[Entry], state: str) -> Outcome:
    return Outcome(failed=[(entry, Reason("failed", state)) for entry in batch])


def taken(health: LaneHealth, batch: list[Entry], outcome: Outcome, share: float = 0.0) -> str:
    return health.batch_taken(batch, outcome, ORDINARY, share)


# Failures that all transactions have in common.


def test_one_sqlstate_from_many_transactions_in_a_row_is_systemic() -> None:
    health = LaneHealth()
    few, last = entries(SYSTEMIC - 1), entries(1, first=SYSTEMIC)

    assert taken(health, few, failing(few, "42P01")) == ""
    assert taken(health, few, failing(few, "42P01")) == "", "the same transactions, tried again"
    assert taken(health, last, failing(last, "42P01")) == "42P01"


@pytest.mark.parametrize("between", ["a success", "another failure", "an operator"])
def test_failures_are_counted_from_the_start_after(between: str) -> None:
    health = LaneHealth()
    few, last = entries(SYSTEMIC - 1), entries(1, first=SYSTEMIC)
    taken(health, few, failing(few, "42P01"))

    if between == "a success":
        taken(health, last, Outcome(committed=last))
    elif between == "another failure":
        taken(health, last, failing(last, "23505"))
    else:
        health.resume()

    assert taken(health, last, failing(last, "42P01")) == ""


def test_after_a_resume_failures_alike_are_accepted_once() -> None:
    health = LaneHealth()
    many = entries(SYSTEMIC)
    assert taken(health, many, failing(many, "42P01")) == "42P01"

    health.resume()

    assert taken(health, many, failing(many, "42P01")) == ""
    assert taken(health, many, failing(many, "42P01")) == "42P01"


def test_pauses_grow_up_to_three_seconds_and_a_success_ends_their_growth() -> None:
    health = LaneHealth()

    assert [health.pause("contended", 0.0, 1.0) for _ in range(5)] == [1, 2, 3, 3, 3]
    assert (health.paused_until, health.reason) == (3.0, "contended")
    taken(health, entries(1), Outcome(committed=entries(1)))
    assert health.reason == ""
    assert health.pause("contended", 0.0, 1.0) == 1.0


# The size of batches.


def test_a_batch_that_takes_too_long_is_halved_and_grows_again_when_batches_are_quick() -> None:
    health = LaneHealth()

    taken(health, entries(100), Outcome(committed=entries(100)), share=0.5)
    assert health.batch_limit == 50
    taken(health, entries(50), Outcome(committed=entries(50)), share=0.2)
    assert health.batch_limit == 50
    taken(health, entries(50), Outcome(committed=entries(50)), share=0.05)
    assert health.batch_limit == 0


# Sessions that end.


def end(
    health: LaneHealth, batch: list[Entry], *, answered: bool = True, slow: bool = False
) -> None:
    health.session_ended(batch, 3, answered=answered, slow=slow)


def test_a_batch_whose_session_ends_three_times_is_halved() -> None:
    health = LaneHealth()

    for limit in (0, 0, 50):
        end(health, entries(100))
        assert health.batch_limit == limit


def test_a_batch_that_meets_the_deadline_is_halved_at_once() -> None:
    health = LaneHealth()

    end(health, entries(100), slow=True)

    assert health.batch_limit == 50


def test_an_entry_that_ends_its_session_alone_each_time_is_condemned() -> None:
    health = LaneHealth()

    for condemned in ("", "", "id 0"):
        end(health, entries(1))
        assert health.condemned == condemned


def test_an_outage_of_the_server_condemns_no_entry() -> None:
    health = LaneHealth()

    for _ in range(9):
        end(health, entries(1), answered=False)

    assert (health.condemned, health.batch_limit) == ("", 0)
