"""Folded transactions have the effect that they would have had singly, or are not folded.

Each transaction here is one of several of one shape in one batch, so that folding is tried.
"""

from __future__ import annotations

from typing import Any

import pytest

from processor.sql.folding import FoldedAdd, FoldedInsert
from processor.transaction.builder import Transaction
from tests.harness.site import Site, step

STOCK = """
create table stock (name text, shelf int, n bigint not null default 0, primary key (name, shelf));
insert into stock values ('7', 1), ('True', 1), ('true', 1), ('1', 1), ('x', 1), ('x', 2)
"""


def stock(site: Site) -> dict[tuple[str, int], int]:
    return {(name, shelf): n for name, shelf, n in site.execute("select * from stock") if n}


def add(where: dict[str, Any], n: int = 1, expect: int | None = None) -> Transaction:
    return Transaction(attempts=1).update("stock", add={"n": n}, where=where, expect=expect)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of transactions in each fold that was rendered."""
    sizes: list[int] = []
    for kind in (FoldedAdd, FoldedInsert):

        def write(self: Any, rows: Any, write: Any = kind.write) -> str:
            text: str = write(self, rows)
            sizes.append(len(rows))
            return text

        monkeypatch.setattr(kind, "write", write)
    return sizes


def test_additions_to_one_row_are_summed(site: Site, folded: list[int]) -> None:
    """Without this the tests below would prove nothing."""
    site.execute(STOCK)
    drain = site.drain()
    site.submit(*(add({"name": "x", "shelf": 2 - n % 2}, n, expect=1) for n in range(1, 7)))

    step(drain)

    assert stock(site) == {("x", 1): 9, ("x", 2): 12}
    assert folded == [6]


@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("other", [2, None])
def test_a_different_expect_among_equal_ones_is_not_ignored(
    other: int | None, place: int, site: Site
) -> None:
    site.execute(STOCK)
    drain = site.drain()
    many = [add({"name": "x", "shelf": 1}, expect=1) for _ in range(5)]
    odd = add({"name": "x", "shelf": 2}, n=100, expect=other)
    many.insert(place, odd)
    site.submit(*many)

    step(drain)

    passes = other is None
    assert stock(site) == {("x", 1): 5} | ({("x", 2): 100} if passes else {})
    assert [row[:2] for row in site.dead()] == ([] if passes else [(odd.id, "PR002")])


def test_a_missing_row_fails_only_the_transaction_that_expects_it(site: Site) -> None:
    site.execute(STOCK)
    drain = site.drain()
    good = [add({"name": "x", "shelf": 1}, expect=1) for _ in range(5)]
    bad = add({"name": "missing", "shelf": 1}, expect=1)
    site.submit(*good, bad)

    step(drain)

    assert stock(site) == {("x", 1): 5}
    assert [row[:2] for row in site.dead()] == [(bad.id, "PR002")]


ALIKE: list[tuple[list[Any], dict[str, int]]] = [
    ([7, "7", 7, "7", "x"], {"7": 4, "x": 1}),
    (["7", 7, "x", "x", "x"], {"7": 2, "x": 3}),
    ([True, 1, True, 1, 1], {"true": 2, "1": 3}),
    ([1, True, "1", "true", "x"], {"1": 2, "true": 2, "x": 1}),
    (["1", "1", "1", "1", 1], {"1": 5}),
]


@pytest.mark.parametrize("expect", [None, 1])
def test_additions_to_keys_that_look_alike_reach_the_right_rows(
    expect: int | None, site: Site
) -> None:
    """True and 1 are one key of a dict but two texts; 7 and "7" are two keys but one text."""
    site.execute(STOCK)
    drain = site.drain()
    for keys, sums in ALIKE:
        site.execute("update stock set n = 0")
        site.submit(*(add({"name": key, "shelf": 1}, expect=expect) for key in keys))

        step(drain)

        assert stock(site) == {(name, 1): n for name, n in sums.items()}, keys
    assert site.dead() == []


SEES = "create table seen (n int); create function {} language plpgsql as $$ begin {} end $$;"
COUNT = "return (select count(*) from seen);"
LOOKS: dict[str, str] = {
    "default": SEES.format("place() returns bigint", COUNT)
    + "alter table seen add at bigint default place()",
    "check": SEES.format("room() returns bool", "return (select count(*) from seen) < 3;")
    + "alter table seen add check (room())",
    "check of a column": SEES.format(
        "room(int) returns bool", "return (select count(*) from seen) < 3;"
    ) + "alter table seen add check (room(n))",
}  # fmt: skip


@pytest.mark.parametrize("where", LOOKS)
def test_a_user_defined_function_sees_every_earlier_row(
    where: str, site: Site, folded: list[int]
) -> None:
    """A single INSERT of all rows would show it none of them."""
    site.execute(LOOKS[where])
    drain = site.drain()
    many = [Transaction(attempts=1).insert("seen", {"n": n}) for n in range(6)]
    site.submit(*many)

    step(drain)

    assert folded == []
    if where == "default":
        assert site.execute("select n, at from seen order by n") == [(n, n) for n in range(6)]
    else:
        assert site.execute("select n from seen order by n") == [(0,), (1,), (2,)]
        assert [row[0] for row in site.dead()] == [t.id for t in many[3:]]


def test_a_table_with_built_in_default_and_check_is_folded(site: Site, folded: list[int]) -> None:
    site.execute("create table seen (n int check (n >= 0), at timestamptz default now())")
    drain = site.drain()
    site.submit(*(Transaction().insert("seen", {"n": n}) for n in range(6)))

    step(drain)

    assert folded == [6]
    assert site.one("select count(*) from seen") == 6
