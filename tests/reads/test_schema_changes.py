"""A migration beside readers: a read has the types that the table has by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import processor
from processor.config import loader
from processor.reads import reader
from processor.transaction.builder import Transaction
from tests.harness.site import Site

TABLE = """
create table item (id int primary key, code bigint, amount numeric(10,2), at timestamp, day date);
insert into item values (1, 7, 1.25, '2026-11-28 12:00', '2026-11-28');
"""


@pytest.fixture
def shown(site_of: Callable[..., Site]) -> Iterator[Site]:
    """A site that shows pending writes; no pass runs."""
    site = site_of(overlay={"tables": {"item": "id"}})
    site.execute(TABLE)
    loader.configure(site.settings)
    yield site
    reader.close()
    loader.configure({})


def read_all(where: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    rows = processor.read("item", where) if where else processor.read("item")
    return [dict(row) for row in sorted(rows, key=lambda row: row["id"])]


@pytest.mark.parametrize("pending", [False, True], ids=["nothing pending", "pending"])
@pytest.mark.parametrize("known", ["by its key", "all"])
@pytest.mark.parametrize(
    ("sql", "column", "value"),
    [
        ("alter table item alter code type text", "code", "7"),
        ("alter table item alter at type timestamptz", "at", "2026-11-28T10:00:00+00:00"),
        ("alter table item drop day; alter table item add days int default 5", "days", 6),
        ("alter table item alter day set default '2026-01-01'", "code", 7),
        ("alter table item rename to old; create table item (id int primary key, code text);"
         " insert into item values (1, '7')", "code", "7"),
    ],
)  # fmt: skip
def test_a_read_after_a_migration_is_that_of_a_fresh_session(
    shown: Site, sql: str, column: str, value: Any, known: str, pending: bool
) -> None:
    """Rule 17: what is pending is typed for the table as it is."""
    # Each form of a read knows the table, and has its statements prepared.
    read_all({"id": 1} if known == "by its key" else None)
    shown.execute(sql)
    if pending:
        shown.submit(Transaction().insert("item", {"id": 2, column: value}))
        shown.submit(Transaction().update("item", {column: value}, where={"id": 1}))

    wheres = [{column: value}, None, {"id": 1}, {"id": 2}]
    found = [read_all(where) for where in wheres]

    reader.close()
    assert found == [read_all(where) for where in wheres]
