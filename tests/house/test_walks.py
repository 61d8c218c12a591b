"""A transaction, a read and a retry pass through the modules that `processor/README.rst` lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import walks

README = Path(__file__).resolve().parents[2] / "processor" / "README.rst"

TITLES = {"submit": "Submit to committed", "read": "A read", "retry": "Retry of a dead letter"}

#: A walk has at most this many stations, so that a reader can follow it.
MOST = {"submit": 25, "retry": 14}


@pytest.fixture(scope="module")
def walked() -> dict[str, dict[str, list[str]]]:
    return walks.walked()


def listed(title: str) -> list[str]:
    """The stations of a walk, as the README lists them."""
    text = README.read_text()
    section = text[text.index(f"\n{title}\n---") :]
    numbered = re.search(r"(?:^#\. .*\n(?:   .*\n)*)+", section, re.M)
    assert numbered, title
    return re.findall(r"^#\. ``([\w.]+)``", numbered[0], re.M)


@pytest.mark.parametrize("walk", TITLES)
def test_the_readme_lists_the_modules_that_a_walk_passes_through(walk, walked) -> None:
    assert sorted(listed(TITLES[walk])) == sorted(walked[walk])


@pytest.mark.parametrize("walk", TITLES)
def test_the_readme_counts_its_stations(walk, walked) -> None:
    text = README.read_text()
    section = text[text.index(f"\n{TITLES[walk]}\n---") :]

    count = re.search(r"^(\d+) stations", section, re.M)

    assert count
    assert int(count[1]) == len(walked[walk])


@pytest.mark.parametrize("walk", MOST)
def test_a_walk_is_short_enough_to_follow(walk, walked) -> None:
    assert len(walked[walk]) <= MOST[walk]


def test_a_walk_contains_what_works_on_the_transaction_and_nothing_of_the_ground(walked) -> None:
    """Otherwise the tests above would compare empty lists."""
    for module in ("transaction.builder", "apply.committer", "connections.postgres_connection"):
        assert module in walked["submit"]
    assert "apply.dead_letter_writer" in walked["retry"]
    assert "reads.reader" in walked["read"]
    for walk in walked.values():
        assert not [name for name in walk if name.startswith(walks.GROUND)]
