"""Merged rows are what PostgreSQL will show, for random histories.

A history of transactions is cut at a random point. A processor applies the transactions before it;
the rest is read through the overlay. Then the rest is applied, and the tables must show the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import processor
from processor.config import loader
from processor.reads import reader
from processor.transaction.builder import Transaction, add_checked
from processor.transaction.values import Json
from tests.harness.site import Site, step

TABLES = """
create type mood as enum ('good', 'bad');
create table item (
    id int primary key, name text not null default 'new', n smallint default 0,
    price numeric(6,2), at timestamptz, kind varchar(4));
create table part (site text, no bigint, n int, f double precision, primary key (site, no));
create table odd (
    id uuid primary key, mood mood, pad character(3), day date, doc jsonb, r real, code text unique,
    big numeric, ok boolean, span interval);
create domain doc as jsonb;
create table series (
    no int generated always as identity primary key, code text, open bool, doc jsonb not null,
    own doc, old json, half int generated always as (no / 2) stored);
create unique index on series (code) where open;
"""
OVERLAY = {"item": "id", "part": "site, no", "odd": "id", "series": "no"}


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


U = "0190abcd-0000-7000-8000-00000000000{}"
KEYS = {
    "item": {"id": some(1, 2, 3, "1", " 2", "3.0", 4)},
    "part": {"site": some("a", "b", "a "), "no": some(1, "1", 2)},
    "odd": {"id": some(U.format(1), U.format(2).upper(), "{" + U.format(2) + "}", U.format(3))},
    "series": {"no": some(1, "2", 3)},
}
VALUES = {
    "item": {
        "name": some("x", "y", 7, None), "n": some(0, 1, 2, "2", 70000, None),
        "price": some(1, "1.50", 2.5, 12345, "NaN", None),
        "at": some("2026-11-21T06:00:00Z", "2026-11-21 07:00:00+01", None, "2026-11-22"),
        "kind": some("k", "kk", "kk  ", "toolong", None),
    },
    "part": {"n": some(0, 5, None), "f": some(0.5, "1e3", "NaN", None)},
    "odd": {
        "mood": some("good", "bad", "ugly", None), "pad": some("a", "a  ", "abc", None),
        "day": some("2026-11-21", "21 Nov 2026", None),
        "doc": some({"a": [1, None]}, [], Json(None), 7, None),
        "r": some(0.1, 3, "1e10", None), "code": some(None), "big": some("1E+3", 7.25, 10**30),
        "ok": some(True, "no", None), "span": some("1 day", "2:00", None),
    },
    "series": {
        "code": some("a", "b", None), "open": some(True, False), "half": some(1),
        "doc": some({"b": 1, "a": 2}, Json(None), Json(None), None), "old": some(Json(None), None),
        "own": some(Json(None), [], None),
    },
}  # fmt: skip
ADDED = {
    "item": {"n": some(1, -1), "price": some(0.25, -1), "at": some("1 hour")},
    "part": {"n": some(1, None), "f": some(0.5)},
    "odd": {"r": some(0.25), "big": some("0.001", 1), "day": some("1 day")},
    "series": {"no": some(1), "code": some(1)},
}  # fmt: skip
#: Additions that overflow their column. They stand alone, because reads of other rows cannot detect
#: the failure.
TOO_MUCH = {"n": some(32767), "price": some(9000)}


def columns(table: str, least: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Some columns besides the key, with values."""
    choice = VALUES[table]
    names = st.lists(st.sampled_from(sorted(choice)), min_size=least, max_size=3, unique=True)
    return names.flatmap(lambda found: st.fixed_dictionaries({n: choice[n] for n in found}))


def rows(table: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.fixed_dictionaries(KEYS[table]), columns(table)).map(lambda p: p[0] | p[1])


def wheres(table: str) -> st.SearchStrategy[dict[str, Any]]:
    """Conditions: mostly the whole key, else columns that Python can compare."""
    other = {"item": ("name", "n", "price", "kind"), "part": ("site", "n", "no"),
             "odd": ("mood", "pad", "ok", "day", "doc"),
             "series": ("code", "open", "doc")}[table]  # fmt: skip
    one = st.sampled_from(other).flatmap(
        lambda n: st.fixed_dictionaries({n: (KEYS[table] | VALUES[table])[n]})
    )
    key = st.fixed_dictionaries(KEYS[table])
    return st.one_of(key, key, one, st.tuples(key, one).map(lambda p: p[0] | p[1]))


def operations(table: str) -> st.SearchStrategy[Callable[[Transaction], Any]]:
    expect = st.none() | some(0, 1, 2)
    changed = columns(table, 1) | columns(table, 1) | st.fixed_dictionaries(KEYS[table])
    names = st.sampled_from(sorted(ADDED[table]))
    added = names.flatmap(lambda n: st.fixed_dictionaries({n: ADDED[table][n]}))
    keys = list(KEYS[table])
    if table == "series":
        # Mostly what succeeds: a document that is not NULL, and a number that is permitted.
        row = st.tuples(rows(table), some({"doc": Json(None)}, {"doc": 7}, {})).map(
            lambda p: p[0] | p[1] if p[1] else p[0]
        )
        overriding = some(True, True, True, False)
    else:
        row, overriding = rows(table), st.just(False)
    insert = st.tuples(row, overriding).map(
        lambda p: lambda t: t.insert(table, p[0], overriding=p[1])
    )
    several = st.lists(st.fixed_dictionaries(KEYS[table]), min_size=1, max_size=3).map(
        lambda found: lambda t: t.insert(table, rows=found, overriding=True)
    )
    conflicts = some(keys, keys, ["code"]) if table == "series" else st.just(keys)
    upsert = st.tuples(row, conflicts, st.booleans(), overriding).map(
        lambda p: lambda t: t.upsert(
            table, p[0] | {c: "a" for c in p[1] if c not in p[0]}, p[1], update=p[2],
            overriding=p[3],
        )
    )  # fmt: skip
    update = st.tuples(changed, wheres(table), expect).map(
        lambda p: lambda t: t.update(table, p[0], where=p[1], expect=p[2])
    )
    add = st.tuples(added, wheres(table), expect).map(
        lambda p: lambda t: t.update(table, add=p[0], where=p[1], expect=p[2])
    )
    delete = st.tuples(wheres(table), expect).map(
        lambda p: lambda t: t.delete(table, p[0], expect=p[1])
    )
    return st.one_of(insert, insert, insert, several, upsert, update, update, add, add, delete)


def transactions() -> st.SearchStrategy[Transaction]:
    def made(steps: list[Callable[[Transaction], Any]]) -> Transaction:
        transaction = Transaction(attempts=1)
        for each in steps:
            each(transaction)
        return transaction

    one = st.sampled_from(sorted(OVERLAY)).flatmap(operations)
    much = st.sampled_from(sorted(TOO_MUCH)).flatmap(
        lambda n: st.fixed_dictionaries({n: TOO_MUCH[n]})
    )
    alone = st.tuples(much, st.fixed_dictionaries(KEYS["item"])).map(
        lambda p: [lambda t: t.update("item", add=p[0], where=p[1])]
    )
    many = st.lists(one, min_size=1, max_size=3)
    return st.one_of(many, many, many, many, alone).map(made)


HISTORIES = st.tuples(st.lists(transactions(), min_size=1, max_size=8), st.integers(0, 8))


@pytest.fixture
def merged(site_of: Callable[..., Site]) -> Iterator[Site]:
    site = site_of(overlay={"tables": OVERLAY}, retry={"attempts": 1, "delay": 0.0})
    site.execute(TABLES)
    loader.configure(site.settings)
    yield site
    reader.close()
    loader.configure({})


class Histories:
    """Plays histories one after the other on the same servers."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.drain = site.drain()
        self.complete = self.merged = 0

    def play(self, history: list[Transaction], point: int) -> None:
        self._empty()
        self._apply(history[:point])
        self.site.submit(*history[point:]) if history[point:] else None
        found = {table: processor.read(table) for table in OVERLAY}
        single = {table: [(row, self._by_key(table, row)) for row in found[table]]
                  for table in OVERLAY}  # fmt: skip
        absent = {table: self._absent(table, found[table]) for table in OVERLAY}
        self._apply([])
        for table in OVERLAY:
            self._compare(table, found[table], single[table], absent[table])

    def _compare(self, table: str, found: Any, single: Any, absent: Any) -> None:
        expected = self._rows(table)
        self.merged += 1
        if found.complete:
            self.complete += 1
            assert in_order(found) == expected, (table, in_order(found), expected)
        for row, again in single:
            if found.complete and again.complete:
                assert shown(again) == [shown_row(row)], (table, row, again)
        for rows_ in absent:
            assert not rows_.complete or not found.complete or rows_ == [], (table, rows_)

    def _by_key(self, table: str, row: Any) -> Any:
        return processor.read(table, {key: row[key] for key in KEYS[table]})

    def _absent(self, table: str, found: Any) -> list[Any]:
        if table == "item":
            there = {row["id"] for row in found}
            return [processor.read(table, {"id": n}) for n in (1, 2, 3, 4) if n not in there]
        return []

    def _apply(self, transactions: list[Transaction]) -> None:
        if transactions:
            self.site.submit(*transactions)
        step(self.drain, looks=False)
        for _ in range(20):
            if not self.site.depth() and not self.site.parked():
                return
            step(self.drain)
        raise AssertionError(self.site.tale())

    def _rows(self, table: str) -> list[Any]:
        return in_order(processor.read(table, replica="primary"))

    def _empty(self) -> None:
        self.site.execute("truncate item, part, odd, series")
        keys = self.site.redis.keys("processor:overlay*")
        if keys:
            self.site.redis.delete(*keys)


def shown_row(row: Any) -> dict[str, Any]:
    # NaN must equal itself here.
    return {name: repr(v) if v != v else v for name, v in row.items()}


def shown(rows_: Any) -> list[dict[str, Any]]:
    return [shown_row(row) for row in rows_]


def in_order(rows_: Any) -> list[dict[str, Any]]:
    return sorted(shown(rows_), key=lambda row: repr(list(row.values())[:2]))


def play(site: Site, examples: int, *, derandomize: bool) -> Histories:
    player = Histories(site)
    step(player.drain)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=derandomize,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(HISTORIES)
    def one(history: tuple[list[Transaction], int]) -> None:
        fresh = [copied(each) for each in history[0]]
        note(f"{[each.operations for each in fresh]} applied: {history[1]}")
        player.play(fresh, history[1])

    one()
    return player


def copied(transaction: Transaction) -> Transaction:
    """The same operations under a new id: hypothesis plays a history more than once."""
    made = Transaction(attempts=1)
    for operation in transaction.operations:
        add_checked(made, operation)
    return made


def test_a_merge_at_any_replay_point_is_what_the_primary_will_have(merged: Site) -> None:
    player = play(merged, 120, derandomize=True)
    assert player.complete > 0.7 * player.merged, (player.complete, player.merged)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_merge_at_many_replay_points_is_what_the_primary_will_have(merged: Site) -> None:
    play(merged, int(os.environ.get("SOAK_EXAMPLES", "5000")), derandomize=False)
