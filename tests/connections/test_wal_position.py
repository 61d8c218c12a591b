"""Positions in the WAL: the rule for the LSN of a commit, and the effect of a promotion."""

from __future__ import annotations

import pytest

from processor.connections.wal_position import Position, after_commit, format_lsn, parse_lsn


@pytest.mark.parametrize("text", ["0/0", "0/16B3748", "16/B374D848", "FFFFFFFF/FFFFFFFF"])
def test_an_lsn_survives_conversion_to_a_number(text: str) -> None:
    assert format_lsn(parse_lsn(text)) == text


@pytest.mark.parametrize("text", ["", "16", "x/y", "1-2"])
def test_invalid_lsns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_lsn(text)


def test_the_written_position_counts_unless_commits_are_asynchronous() -> None:
    assert after_commit("0/2000100", "0/2000200", "on") == parse_lsn("0/2000100")
    assert after_commit("0/2000100", "0/2000200", "remote_apply") == parse_lsn("0/2000100")
    assert after_commit("0/2000100", "0/2000200", "off") == parse_lsn("0/2000200")


@pytest.mark.parametrize(
    ("insert", "reachable"),
    [("0/2000018", "0/2000000"), ("0/3000028", "0/3000000"), ("0/2000019", "0/2000019")],
)
def test_an_insert_position_just_behind_a_page_header_is_rounded_down(
    insert: str, reachable: str
) -> None:
    """Rule 34: a standby never reaches 24 bytes past the last record while no record follows."""
    assert after_commit("0/1000000", insert, "off") == parse_lsn(reachable)


def test_a_position_on_another_timeline_or_server_reaches_nothing() -> None:
    here = Position("7", 1, 100)
    assert Position("7", 1, 100).reaches(here)
    assert Position("7", 1, 200).reaches(here)
    assert not Position("7", 1, 99).reaches(here)
    assert not Position("7", 2, 200).reaches(here)
    assert not Position("8", 1, 200).reaches(here)


def test_a_position_survives_conversion_to_text() -> None:
    position = Position("7710819950381557455", 3, parse_lsn("2/4A000060"))
    assert Position.parse(str(position)) == position
