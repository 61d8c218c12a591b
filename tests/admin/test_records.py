"""Functions of `admin` return frozen records and raise typed errors; they never print or exit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from processor.admin import (
    consistency,
    dead_letter_requests,
    dead_letter_selection,
    explanation,
    pauses,
    status,
)
from processor.admin.buffer_membership import BufferMembership
from processor.admin.dead_letter_selection import NoDeadLetter, Selection
from processor.admin.sessions import OperatorSessions
from processor.config import loader
from processor.transaction.ids import new_id
from tests.harness.cli import Cli, poison
from tests.harness.site import Site


@pytest.fixture
def sessions(site: Site) -> OperatorSessions:
    return OperatorSessions(loader.load(site.mapping, environ={}))


def is_frozen(record: Any) -> bool:
    parameters = getattr(type(record), "__dataclass_params__", None)
    return dataclasses.is_dataclass(record) and parameters is not None and parameters.frozen


def test_each_question_is_answered_by_frozen_records_and_nothing_is_printed(
    sessions: OperatorSessions, at_site: Cli, dead_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (dead,) = poison(dead_site)
    membership = BufferMembership(sessions)
    (found,) = dead_letter_requests.open_letters(membership, [dead])

    answers = [
        status.status(sessions), *pauses.lanes(sessions), explanation.explain(sessions, dead),
        *consistency.verify(sessions), dead_letter_selection.listing(sessions, Selection(), 10),
        dead_letter_selection.of_id(sessions, dead), found,
        dead_letter_requests.scope(membership, Selection()),
        *dead_letter_requests.request(membership, "discard", [found.letter], 20.0),
    ]

    assert all(map(is_frozen, answers))
    assert answers[-1].text == "discarded"
    assert capsys.readouterr() == ("", "")


def test_a_queue_is_paused_and_resumed(sessions: OperatorSessions) -> None:
    assert pauses.pause(sessions, "high", None) == 0
    assert {each.queue for each in pauses.lanes(sessions) if each.paused_until == 0} == {"high"}
    end = pauses.pause(sessions, "high", 60.0)
    assert {each.paused_until for each in pauses.lanes(sessions) if each.queue == "high"} == {end}
    assert pauses.resume(sessions, "high")
    assert all(each.paused_until is None for each in pauses.lanes(sessions))


def test_an_unknown_queue_is_an_error_that_suggests_another(sessions: OperatorSessions) -> None:
    for change in (lambda: pauses.pause(sessions, "hihg", None),
                   lambda: pauses.resume(sessions, "hihg")):  # fmt: skip
        with pytest.raises(pauses.NoSuchQueue, match="did you mean high"):
            change()


def test_an_id_without_a_dead_letter_is_an_error(sessions: OperatorSessions) -> None:
    missing = new_id()
    with pytest.raises(NoDeadLetter, match=missing):
        dead_letter_selection.of_id(sessions, missing)
    with pytest.raises(NoDeadLetter, match=missing):
        dead_letter_requests.open_letters(BufferMembership(sessions), [missing])
