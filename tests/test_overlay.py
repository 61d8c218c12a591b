"""Reads that see pending writes: what is on its way is shown once, whatever the servers do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

import processor
from processor import config, reader
from processor.clearing import Clearing
from processor.transaction import Transaction
from tests.fix_site import Site, step

TABLES = """
create table item (
    id int primary key, name text not null default 'new', n int default 0,
    price numeric(10,2), at timestamptz, kind text);
create table part (site text, no int, n bigint, primary key (site, no));
create type mood as enum ('good', 'bad');
create table odd (id uuid primary key, mood mood, span interval, tags text[], doc jsonb, day date);
"""
OVERLAY = {"item": "id", "part": "site, no", "odd": "id"}


def reading(site: Site) -> Site:
    """Let `import processor` read by the settings of a site."""
    config.configure(site.settings)
    return site


@pytest.fixture
def shown(site_of: Callable[..., Site]) -> Iterator[Site]:
    """A site that shows pending writes, with a processor that makes its passes when told."""
    site = site_of(overlay={"tables": OVERLAY}, statements={"mark": "update item set n = 99"})
    site.execute(TABLES)
    yield reading(site)
    reader.close()
    config.configure({})


def t(**options: Any) -> Transaction:
    return Transaction(**options)


def overlay_keys(site: Site) -> list[str]:
    keys = (key.decode() for key in site.redis.keys("processor:overlay*"))
    # A stream stays when it is empty.
    return sorted(k for k in keys if not k.endswith(":log") or site.redis.xlen(k))


def clear(site: Site) -> None:
    """One look of the clearing."""
    clearing = Clearing(site.settings)
    try:
        clearing.clear()
    finally:
        clearing.drop()


# What is seen.


def test_an_insert_is_read_before_anybody_applied_it(shown: Site) -> None:
    shown.submit(t().insert("item", {"id": 1, "price": "7.5"}))
    (row,) = processor.read("item", {"id": 1})
    assert row == {"id": 1, "name": "new", "n": 0, "price": Decimal("7.50"), "at": None,
                   "kind": None}  # fmt: skip
    assert (row.source, row.complete) == ("buffer", True)
    assert processor.read("item", {"id": 2}) == []


def test_updates_additions_and_deletes_of_buffered_rows_are_applied_in_order(shown: Site) -> None:
    shown.execute("insert into item (id, n) values (1, 5), (2, 5)")
    shown.submit(
        t().insert("item", {"id": 3, "n": 1}),
        t().update("item", add={"n": 2}, where={"id": 3}),
        t().update("item", {"name": "x"}, add={"n": 1}, where={"id": 1}),
        t().delete("item", {"id": 2}),
        t().upsert("item", {"id": 3, "kind": "k"}, ["id"]),
    )
    assert processor.read("item", {"id": 1})[0]["n"] == 6
    assert processor.read("item", {"id": 2}) == []
    (row,) = processor.read("item", {"id": 3})
    assert (row["n"], row["kind"]) == (3, "k")
    rows = {row["id"]: row["n"] for row in processor.read("item")}
    assert rows == {1: 6, 3: 3}


def test_once_applied_a_write_is_read_from_the_server_and_not_twice(shown: Site) -> None:
    shown.execute("insert into item (id, n) values (1, 5)")
    shown.submit(t().update("item", add={"n": 2}, where={"id": 1}))
    (row,) = processor.read("item", {"id": 1})
    assert (row["n"], row.source) == (7, "buffer")
    step(shown.drain())
    (row,) = processor.read("item", {"id": 1})
    assert (row["n"], row.source) == (7, "primary")
    assert overlay_keys(shown) != []
    clear(shown)
    assert overlay_keys(shown) == []
    assert processor.read("item", {"id": 1}) == [row]
