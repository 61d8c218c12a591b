"""Reads that see pending writes: each write is shown once, whatever the servers do."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

import processor
from processor.apply.dead_letter_writer import DeadLetterWriter
from processor.config import loader
from processor.config.settings import Settings
from processor.reads import reader
from processor.runtime import drain_thread
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.transaction.builder import Transaction, add_checked
from processor.transaction.values import Json
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

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
    """Let `import processor` use the settings of a site."""
    loader.configure(site.settings)
    return site


@pytest.fixture
def shown(site_of: Callable[..., Site]) -> Iterator[Site]:
    """A site that shows pending writes; its passes run when a test makes them."""
    site = site_of(overlay={"tables": OVERLAY}, statements={"mark": "update item set n = 99"})
    site.execute(TABLES)
    yield reading(site)
    reader.close()
    loader.configure({})


def t(**options: Any) -> Transaction:
    return Transaction(**options)


def overlay_keys(site: Site) -> list[str]:
    keys = (key.decode() for key in site.redis.keys("processor:overlay*"))
    # Redis keeps a stream that is empty.
    return sorted(k for k in keys if not k.endswith(":log") or site.redis.xlen(k))


def clear(site: Site) -> None:
    """Run the overlay cleaner once."""
    cleaner = OverlayCleaner(site.settings)
    try:
        cleaner.clear()
    finally:
        cleaner.close()


# What reads show.


def test_an_insert_is_read_before_it_is_applied(shown: Site) -> None:
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


def test_rows_are_found_by_columns_as_pending_writes_leave_them(shown: Site) -> None:
    shown.execute("insert into item (id, kind, n) values (1, 'a', 1), (2, 'b', 2), (3, 'a', 3)")
    shown.submit(
        t().update("item", {"kind": "b"}, where={"id": 1}),
        t().update("item", {"n": 10}, where={"kind": "b"}),
        t().delete("item", {"n": 3}),
        t().insert("item", {"id": 9, "kind": "a"}),
    )
    assert {row["id"] for row in processor.read("item", {"kind": "a"})} == {9}
    assert {row["id"]: row["n"] for row in processor.read("item", {"kind": "b"})} == {1: 10, 2: 10}
    assert processor.read("item", {"kind": None}) == []


def test_a_wide_write_is_seen_by_a_read_of_one_row(shown: Site) -> None:
    """In its order among the writes that name the row."""
    shown.execute("insert into item (id, n, kind) values (1, 1, 'a')")
    shown.submit(
        t().update("item", add={"n": 1}, where={"id": 1}),
        t().update("item", {"n": 50}, where={"kind": "a"}),
        t().update("item", add={"n": 1}, where={"id": 1}),
    )
    assert processor.read("item", {"id": 1})[0]["n"] == 51


@pytest.mark.parametrize("key", [7, "7", " 7", 7.0, Decimal("7.00"), "+7", "0007"])
def test_a_key_finds_the_same_row_in_whatever_form_it_is_sent(shown: Site, key: Any) -> None:
    shown.execute("insert into item (id, n) values (7, 1)")
    shown.submit(t().update("item", add={"n": 1}, where={"id": key}))
    step(shown.drain())
    applied = shown.one("select n from item")
    shown.execute("update item set n = 1; delete from processor.ledger")
    assert processor.read("item", {"id": 7})[0]["n"] == applied


@pytest.mark.parametrize("declared", ["item", "public.item"])
@pytest.mark.parametrize("named", ["item", "public.item"])
def test_a_table_is_the_same_with_and_without_its_schema(
    site_of: Callable[..., Site], declared: str, named: str
) -> None:
    site = reading(site_of(overlay={"tables": {declared: "id"}}))
    site.execute(TABLES + "create schema other; create table other.item (id int primary key);")
    site.submit(t().insert(named, {"id": 1}), t().insert("other.item", {"id": 2}))
    assert [row["id"] for row in processor.read(named)] == [1]
    assert [row["id"] for row in processor.read(named, {"id": 1})] == [1]
    reader.close()


def test_another_row_decides_about_the_whole_transaction(shown: Site) -> None:
    """The key of the second order is taken: it will die, and its addition has no effect."""
    shown.execute("insert into item (id, n) values (1, 0)")

    def order() -> Transaction:
        return t(attempts=1).insert("part", {"site": "a", "no": 1}).update(
            "item", add={"n": 5}, where={"id": 1}
        )

    shown.submit(order(), order())
    assert processor.read("item", {"id": 1})[0]["n"] == 5
    shown.submit(t(attempts=1).update("item", add={"n": 1}, where={"id": 1})
                 .update("part", {"n": 1}, where={"site": "b", "no": 1}, expect=1))  # fmt: skip
    assert processor.read("item", {"id": 1})[0]["n"] == 5
    # The key of the next one is taken by a transaction that does not touch the row that is read.
    shown.submit(t().insert("part", {"site": "c", "no": 1}))
    shown.submit(t(attempts=1).insert("part", {"site": "c", "no": "1"})
                 .update("item", add={"n": 7}, where={"id": 1}))  # fmt: skip
    assert processor.read("item", {"id": 1})[0]["n"] == 5
    drain = shown.drain()
    for _ in range(4):
        step(drain)
    assert shown.one("select n from item") == 5
    assert len(shown.dead()) == 3


@pytest.mark.parametrize(
    "refused",
    [
        t().upsert("item", {"id": 1, "name": None}, ["id"]),
        t().update("item", {"name": None}, where={"id": 1}),
        t().insert("item", {"id": 9, "kind": None, "n": "much"}),
    ],
)
def test_a_refused_operation_leaves_the_other_rows_of_its_transaction_unchanged(
    shown: Site, refused: Transaction
) -> None:
    shown.execute("insert into item (id) values (1)")
    both = t(attempts=1).insert("part", {"site": "a", "no": 1})
    for operation in refused.operations:
        add_checked(both, operation)
    shown.submit(both)
    assert processor.read("part", {"site": "a", "no": 1}) == []
    assert processor.read("part") == []
    step(shown.drain())
    assert len(shown.dead()) == 1


def test_trailing_spaces_of_a_padded_text_are_not_compared(shown: Site) -> None:
    shown.execute("alter table item add code char(3); insert into item (id, code) values (1, 'a')")
    shown.submit(t().update("item", {"n": 5}, where={"code": "a"}))
    (row,) = processor.read("item", {"code": "a "})
    assert (row["code"], row["n"]) == ("a  ", 5)


def test_a_table_of_the_same_name_in_another_schema_is_a_different_table(
    site_of: Callable[..., Site],
) -> None:
    site = reading(site_of(overlay={"tables": OVERLAY}, database={"search_path": "public,other"}))
    site.execute(TABLES + "create schema other; create table other.item (id int primary key);")
    site.submit(t().insert("item", {"id": 1}), t().insert("other.item", {"id": 2}))
    assert [row["id"] for row in processor.read("item")] == [1]
    reader.close()


def test_every_type_is_read_as_the_driver_would_give_it(shown: Site) -> None:
    key = processor.new_id()
    values = {"id": key.upper(), "mood": "bad", "span": "1 day 2:00", "tags": ["a", "b,c", None],
              "doc": {"a": [1, 2.5, None]}, "day": "21 November 2026"}  # fmt: skip
    shown.submit(t().insert("odd", values))
    (pending,) = processor.read("odd", {"id": key})
    step(shown.drain())
    (applied,) = processor.read("odd", {"id": key})
    assert pending == applied
    assert applied["span"] == datetime.timedelta(days=1, hours=2)
    assert (pending.source, applied.source) == ("buffer", "primary")


# Effects that only PostgreSQL can tell.


def test_a_pending_statement_makes_the_rows_incomplete_until_it_is_applied(shown: Site) -> None:
    shown.execute("insert into item (id) values (1)")
    shown.submit(t().statement("mark"))
    rows = processor.read("item", {"id": 1})
    assert (rows[0]["n"], rows.complete, rows[0].complete) == (0, False, False)
    step(shown.drain())
    rows = processor.read("item", {"id": 1})
    assert (rows[0]["n"], rows.complete) == (99, True)


def test_a_comparison_that_only_the_server_can_make_leaves_the_rows_incomplete(shown: Site) -> None:
    shown.execute("insert into odd (id, span, doc) values (%s, '30 days', '1')", (UUID,))
    shown.submit(t().update("odd", {"mood": "bad"}, where={"span": "1 month"}))
    (row,) = processor.read("odd", {"id": UUID})
    assert (row["mood"], row.complete) == (None, False)
    assert len(processor.read("odd", {"span": "1 month"})) == 1


UUID = "0190abcd-0000-7000-8000-000000000001"


def test_dead_letters_leave_the_overlay(shown: Site) -> None:
    shown.execute("insert into item (id, n) values (1, 0); alter table item add check (n < 5)")
    shown.submit(t(attempts=1).update("item", {"n": 9}, where={"id": 1}))
    assert processor.read("item", {"id": 1})[0]["n"] == 9
    step(shown.drain())
    assert len(shown.dead()) == 1
    assert processor.read("item", {"id": 1})[0]["n"] == 0
    clear(shown)
    assert overlay_keys(shown) == []


def test_rows_are_incomplete_while_a_failed_write_precedes_a_committed_one(
    shown: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the commits of a batch and of its dead letters the ledger has only the later one."""
    shown.execute("insert into item (id, n) values (1, 1), (2, 2)")
    dies = t(attempts=1).delete("item", {"id": 1}).insert("item", {"id": 2, "n": 0})
    shown.submit(dies, t().delete("item", {"id": 2}))
    committed, released, write_letters = (
        threading.Event(), threading.Event(), DeadLetterWriter.write
    )  # fmt: skip

    def late(*arguments: Any) -> None:
        committed.set()
        assert released.wait(10)
        write_letters(*arguments)

    monkeypatch.setattr(DeadLetterWriter, "write", late)
    thread = threading.Thread(target=step, args=(shown.drain(),))
    thread.start()
    try:
        assert committed.wait(10)
        assert not processor.read("item", {"id": 1}).complete
    finally:
        released.set()
        thread.join()
    found = processor.read("item", {"id": 1})
    assert (found[0]["n"], found.complete) == (1, True)


def test_an_expectation_that_is_not_met_yet_leaves_the_rows_incomplete(shown: Site) -> None:
    """The transaction is retried, and may then meet it."""
    shown.execute("insert into item (id, n) values (1, 1)")
    shown.submit(t().update("item", {"n": 5}, where={"id": 1}).delete("item", {"id": 2}, expect=1))
    found = processor.read("item", {"id": 1})
    assert (found[0]["n"], found.complete) == (1, False)


def test_a_domain_is_not_checked_for_rows_that_an_update_does_not_touch(
    site_of: Callable[..., Site]
) -> None:
    site = reading(site_of(overlay={"tables": {"item": "id"}}))
    site.execute("create domain small as int check (value < 10)")
    site.execute("create table item (id int primary key, n small)")
    site.execute("insert into item values (1, 1)")
    elsewhere = t().update("item", {"n": 50}, where={"id": 9})
    site.submit(elsewhere.update("item", {"n": 5}, where={"id": 1}))
    found = processor.read("item", {"id": 1})
    assert not found.complete
    step(site.drain())
    assert site.execute("select n from item") == [(5,)]


def test_delayed_work_is_applied_after_what_is_accepted_before_it_is_due(shown: Site) -> None:
    shown.submit(
        t(delay=1000).update("item", {"n": 1}, where={"id": 1}),
        t().insert("item", {"id": 1, "n": 7}),
    )
    assert processor.read("item", {"id": 1})[0]["n"] == 1


# Cached values.


def test_a_cached_value_stays_as_long_as_its_transaction_is_pending(shown: Site) -> None:
    shown.submit(
        t(cache={"basket 7": {"total": 1}}).insert("account", {"id": 1}),
        t(cache={"basket 7": {"total": 2.5}, "x": None}).insert("account", {"id": 2}),
    )
    assert processor.cached("basket 7") == {"total": 2.5}
    assert processor.cached("nothing") is None
    clear(shown)
    assert processor.cached("basket 7") == {"total": 2.5}
    step(shown.drain())
    clear(shown)
    assert processor.cached("basket 7") is None
    assert overlay_keys(shown) == []


def test_a_cache_must_be_a_mapping_of_values() -> None:
    with pytest.raises(processor.InvalidTransaction, match="cache"):
        t(cache=["x"])  # type: ignore[arg-type]
    with pytest.raises(processor.InvalidTransaction, match=r"cache\.a"):
        t(cache={"a": object()})


# Refusals.


def test_an_invalid_read_is_refused_in_one_line(shown: Site) -> None:
    for table, where, problem in (
        ("account", None, "overlay.tables"), ("item", {"nope": 1}, "no column nope"),
        ("item", {"id": "x"}, "where"), ("odd", {"id": 7}, "where"),
    ):  # fmt: skip
        with pytest.raises(processor.InvalidRead, match=problem):
            processor.read(table, where)
    with pytest.raises(processor.InvalidRead, match="not in replicas"):
        processor.read("item", {"id": 1}, replica="munich")
    for odd in (["munich"], b"primary", 5, ""):
        with pytest.raises(processor.InvalidRead, match=r"not in replicas.*one of primary"):
            processor.read("item", {"id": 1}, replica=odd)  # type: ignore[arg-type]


def test_a_declared_key_that_is_not_unique_is_refused(site_of: Callable[..., Site]) -> None:
    site = reading(site_of(overlay={"tables": {"item": "name"}}))
    site.execute(TABLES)
    with pytest.raises(processor.InvalidRead, match="is not the key"):
        processor.read("item", {"name": "x"})
    reader.close()


def test_a_new_column_is_written_and_read_at_once(shown: Site) -> None:
    shown.execute("insert into item (id) values (1)")
    assert "extra" not in processor.read("item", {"id": 1})[0]
    shown.execute("alter table item add extra int")
    shown.submit(t().update("item", {"extra": 5}, where={"id": 1}))
    wait_until(lambda: processor.read("item", {"id": 1})[0].get("extra") == 5)
    shown.execute("alter table item drop kind")
    wait_until(lambda: "kind" not in processor.read("item", {"id": 1})[0])
    assert "kind" not in processor.read("item")[0]


# In Redis.


def test_a_submit_without_a_table_of_the_overlay_adds_only_its_entry(shown: Site) -> None:
    one = t().insert("account", {"id": 1})
    shown.submit(one)
    before = commands(shown)
    shown.submit(t().insert("account", {"id": 2}))
    grown = {name: count - before.get(name, 0) for name, count in commands(shown).items()}
    assert {name for name, count in grown.items() if count} - {"info"} == {
        "multi", "xadd", "exec", "xlen", "watch", "get", "hmget",
    }  # fmt: skip
    assert overlay_keys(shown) == []


def test_a_submit_with_a_table_of_the_overlay_is_accepted_and_shown_atomically(shown: Site) -> None:
    shown.submit(t().insert("account", {"id": 1}))
    before = commands(shown)
    shown.submit(t().insert("item", {"id": 1}), t(delay=1000).insert("item", {"id": 2}))
    grown = {name: count - before.get(name, 0) for name, count in commands(shown).items()}
    assert (grown["multi"], grown["exec"]) == (1, 1)
    assert {row["id"] for row in processor.read("item")} == {1, 2}


def commands(site: Site) -> dict[str, int]:
    stats = site.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


def test_a_full_redis_neither_accepts_nor_shows(own_redis: Any, site_of: Any) -> None:
    site = reading(site_of(own_redis(), overlay={"tables": OVERLAY}))
    site.execute(TABLES)
    site.submit(t().insert("item", {"id": 1}))
    site.redis.config_set("maxmemory", 1)
    with pytest.raises(processor.BufferFull):
        site.submit(t().insert("item", {"id": 2}))
    site.redis.config_set("maxmemory", 0)
    assert site.depth() == 1
    assert [row["id"] for row in processor.read("item")] == [1]
    reader.close()


def test_the_overlay_counts_towards_a_full_buffer(site_of: Any) -> None:
    site = reading(site_of(overlay={"tables": OVERLAY}, buffer={"limit": 3}))
    site.execute(TABLES)
    for n in range(3):
        site.submit(t().insert("item", {"id": n}))
    step(site.drain())
    assert site.depth() == 0
    with pytest.raises(processor.BufferFull, match="overlay"):
        site.submit(t().insert("item", {"id": 3}))
    site.submit(t().insert("account", {"id": 3}))
    clear(site)
    site.submit(t().insert("item", {"id": 3}))
    reader.close()


def test_cached_values_are_removed_also_without_tables_in_the_overlay(
    site_of: Callable[..., Site]
) -> None:
    site = reading(site_of())
    site.start()
    site.submit(write(1, cache={"page-1": 1}))
    assert processor.cached("page-1") == 1
    site.commits(1)
    wait_until(lambda: processor.cached("page-1") is None)
    assert overlay_keys(site) == []
    reader.close()


def test_pending_writes_are_removed_also_after_their_table_left_the_settings(shown: Site) -> None:
    shown.submit(t().insert("item", {"id": 1}))
    shown.start(shown.changed(overlay={"tables": {"part": "site, no"}}))
    drain_thread.reload(without_overlay(shown))
    wait_until(lambda: not overlay_keys(shown))


def without_overlay(site: Site) -> Settings:
    mapping = {name: each for name, each in site.mapping.items() if name != "overlay"}
    return loader.load(mapping, environ={})


def test_a_transaction_submitted_twice_is_shown_once_and_leaves_nothing_behind(shown: Site) -> None:
    shown.execute("insert into item (id, n) values (1, 0)")
    once = t(cache={"x": 1}).update("item", add={"n": 1}, where={"id": 1}).update(
        "item", {"kind": "k"}, where={"name": "new"}
    )
    shown.submit(once, once)
    assert processor.read("item", {"id": 1})[0]["n"] == 1
    step(shown.drain())
    shown.submit(once)
    assert processor.read("item", {"id": 1})[0]["n"] == 1
    clear(shown)
    assert overlay_keys(shown) == []


def test_another_payload_under_the_same_id_leaves_nothing_behind(shown: Site) -> None:
    one = t().insert("item", {"id": 1})
    shown.submit(one, t(id=one.id).insert("item", {"id": 2, "kind": "x"}))
    step(shown.drain())
    clear(shown)
    assert overlay_keys(shown) == []


@pytest.mark.parametrize("refused", ["lrem", "hdel", "xdel"])
def test_the_next_run_of_the_cleaner_finishes_one_that_was_interrupted(
    own_redis: Any, site_of: Any, refused: str
) -> None:
    site = reading(site_of(own_redis(), overlay={"tables": OVERLAY}))
    site.execute(TABLES)
    for n in range(5):
        site.submit(t().insert("item", {"id": n}).update("part", {"n": 1}, where={"site": "a"}))
    drain = site.drain()
    step(drain)
    site.redis.execute_command("ACL", "SETUSER", "default", f"-{refused}")
    with pytest.raises(processor.ProcessorError):
        clear(site)
    assert sorted(row["id"] for row in processor.read("item")) == [0, 1, 2, 3, 4]
    site.redis.execute_command("ACL", "SETUSER", "default", f"+{refused}")
    clear(site)
    assert overlay_keys(site) == []
    reader.close()


def test_the_ledger_keeps_rows_of_writes_that_the_overlay_still_shows(shown: Site) -> None:
    shown.execute("insert into item (id, n) values (1, 0)")
    shown.submit(
        t().update("item", add={"n": 1}, where={"id": 1}), t().insert("account", {"id": 1})
    )
    drain = shown.drain()
    step(drain)
    shown.execute("update processor.ledger set committed_at = now() - interval '9 days'")
    drain.leave()
    step(shown.drain(instance="after"))
    assert shown.one("select count(*) from processor.ledger") == 1
    assert processor.read("item", {"id": 1})[0]["n"] == 1


def test_foreign_data_in_the_overlay_stops_neither_reads_nor_work(shown: Site) -> None:
    shown.submit(t().insert("item", {"id": 1}))
    shown.redis.rpush("processor:overlay:table:item", "x'); drop table item; --", b"\xff")
    shown.redis.hset("processor:overlay", "x'); drop table item; --", '{"id":"x","at":1}')
    shown.redis.rpush("processor:overlay:statements", "x')")
    shown.redis.xadd("processor:overlay:log", {"id": "nothing", "lists": "{"})
    assert [row["id"] for row in processor.read("item")] == [1]
    step(shown.drain())
    clear(shown)
    assert shown.redis.xlen("processor:overlay:log") == 0


@pytest.mark.parametrize("value", [b"x", b"7", b"[]", b'["a"]', b"\xff"])
def test_an_invalid_cached_value_reads_as_none(shown: Site, value: bytes) -> None:
    shown.redis.rpush("processor:overlay:cache:page-1", value)
    assert processor.cached("page-1") is None


@pytest.mark.parametrize("primary", ["7/\N{SUPERSCRIPT TWO}", "x", b"\xff/1"])
def test_an_invalid_primary_in_redis_stops_neither_reads_nor_work(
    shown: Site, primary: Any
) -> None:
    shown.redis.set("processor:primary", primary)
    shown.submit(t().insert("item", {"id": 1}))
    assert len(processor.read("item")) == 1
    step(shown.drain())
    clear(shown)
    assert overlay_keys(shown) == []


def test_a_key_of_another_type_is_reported_and_writes_continue(
    shown: Site,
) -> None:
    shown.submit(
        t().insert("part", {"site": "a", "no": 1}).update("item", {"n": 1}, where={"id": 1})
    )
    names = [key for key in overlay_keys(shown) if ":row:part:" in key]
    shown.redis.delete(*names)
    shown.redis.set(names[0], "x")
    with pytest.raises(processor.RedisUnavailable, match="another type of data"):
        processor.read("item", {"id": 1})
    shown.submit(t().insert("part", {"site": "a", "no": 1}))
    step(shown.drain())
    clear(shown)
    assert overlay_keys(shown) == names


# Unusual keys, large rows, writes that the processor will refuse.


def test_a_row_is_found_by_any_form_of_its_key(site_of: Callable[..., Site]) -> None:
    site = reading(site_of(overlay={"tables": {"daily": "day"}}))
    site.execute("create table daily (day date primary key, n int)")
    site.execute("insert into daily values ('2026-11-21', 1)")
    site.submit(
        t().update("daily", add={"n": 1}, where={"day": "21 Nov 2026"}),
        t().update("daily", add={"n": 1}, where={"day": datetime.date(2026, 11, 21)}),
        t().update("daily", add={"n": 1}, where={"day": "2026-11-22"}),
    )
    assert processor.read("daily", {"day": "2026-11-21"}) == [
        {"day": datetime.date(2026, 11, 21), "n": 3}
    ]
    assert processor.read("daily", {"day": "infinity"}) == []
    reader.close()


def test_a_row_is_found_by_fractional_numbers(site_of: Callable[..., Site]) -> None:
    site = reading(site_of(overlay={"tables": {"gauge": "id"}}))
    site.execute("create table gauge (id int primary key, n numeric(4,2), f float8, a float8[])")
    site.submit(t().insert("gauge", {"id": 1, "n": 7.5, "f": 0.1, "a": [0.1]}))
    for _ in range(2):
        for where in ({"n": 7.5}, {"f": 0.1}, {"id": 1.0, "f": 0.1}):
            assert [row["id"] for row in processor.read("gauge", where)] == [1]
        assert processor.read("gauge", {"f": 0.5}) == []
        step(site.drain())
    assert [row["id"] for row in processor.read("gauge", {"a": [0.1]})] == [1]
    reader.close()


@pytest.mark.parametrize(
    ("type_", "forms"),
    [("timestamptz", ["2026-11-28 10:00+00", "2026-11-28T12:00:00+02:00"]),
     ("oid", ["-1", "4294967295"])],
)  # fmt: skip
def test_a_row_is_found_although_its_type_changes_the_key(
    site_of: Callable[..., Site], type_: str, forms: list[str]
) -> None:
    site = reading(site_of(overlay={"tables": {"thing": "id"}}))
    site.execute(f"create table thing (id {type_} primary key, n int)")
    site.submit(t().insert("thing", {"id": forms[0], "n": 1}))
    assert [row["n"] for row in processor.read("thing", {"id": forms[1]})] == [1]
    reader.close()


def test_a_key_that_its_type_would_cut_off_is_refused_and_shows_no_other_row(
    site_of: Callable[..., Site],
) -> None:
    site = reading(site_of(overlay={"tables": {"thing": "id"}}))
    site.execute("create table thing (id name primary key, n int)")
    long, cut = "x" * 70, "x" * 63
    site.submit(
        t().insert("thing", {"id": cut, "n": 1}),
        t(attempts=1).insert("thing", {"id": long, "n": 2}),
        t(attempts=1).upsert("thing", {"id": long, "n": 3}, conflict=["id"]),
        t(attempts=1).update("thing", {"n": 4}, where={"id": long}),
        t(attempts=1).delete("thing", {"id": long}),
    )
    drain = site.drain()
    assert [row["n"] for row in processor.read("thing", {"id": cut})] == [1]
    assert [row["n"] for row in processor.read("thing")] == [1]
    wait_until(lambda: step(drain) or not site.depth(), message=lambda: site.tale())
    assert len(site.dead()) == 4
    assert [row["n"] for row in processor.read("thing", {"id": cut})] == [1]
    reader.close()


def test_a_domain_changes_values_as_postgresql_does(site_of: Callable[..., Site]) -> None:
    site = reading(site_of(overlay={"tables": {"tag": "id"}}))
    site.execute("create domain short as varchar(3) default 'new'")
    site.execute(
        "create table tag (id int primary key, word short not null, n int, other short default 'x')"
    )
    site.execute("insert into tag values (1, 'abc', 1)")
    site.submit(
        t().update("tag", {"n": 9}, where={"word": "abcd"}),
        t(attempts=1).insert("tag", {"id": 2, "word": "abcd"}),
        t().insert("tag", {"id": 3, "word": "ab   "}),
        t().insert("tag", {"id": 4}),
    )
    expected = {1: ("abc", 1, "x"), 3: ("ab ", None, "x"), 4: ("new", None, "x")}
    for _ in range(2):
        rows = processor.read("tag")
        assert rows.complete
        assert {r["id"]: (r["word"], r["n"], r["other"]) for r in rows} == expected
        step(site.drain())
    reader.close()


@pytest.mark.parametrize("day", ["0044-03-15 BC", "12000-01-01"])
def test_a_date_outside_the_range_of_python_is_refused(shown: Site, day: str) -> None:
    shown.execute("insert into item (id, at) values (1, %s), (2, null)", (day,))
    for _ in range(2):
        for where in ({"id": 1}, {"name": "new"}, None):
            with pytest.raises(processor.InvalidRead, match="item holds a date outside"):
                processor.read("item", where)
        assert [row["id"] for row in processor.read("item", {"id": 2})] == [2]
        shown.submit(t().update("item", add={"n": 1}, where={"id": 1}))


def test_large_rows_are_merged_and_not_cached(shown: Site) -> None:
    shown.submit(*(t().insert("item", {"id": n, "name": "x" * 100_000}) for n in range(20)))
    assert {len(row["name"]) for row in processor.read("item")} == {100_000}
    current = reader._reader.current()
    assert not current._cache._decoded
    session = current._pool.take("primary")
    assert not session.typed._changes
    current._pool.give(session)


def test_writes_to_tables_that_are_not_allowed_are_not_shown(
    site_of: Callable[..., Site],
) -> None:
    site = reading(site_of(overlay={"tables": OVERLAY}, database={"tables": ["part"]}))
    site.execute(TABLES)
    site.submit(
        t(attempts=1).insert("item", {"id": 1}).insert("part", {"site": "a", "no": 1}),
        t().insert("part", {"site": "a", "no": 2}),
    )
    assert processor.read("item") == []
    assert [row["no"] for row in processor.read("part")] == [2]
    assert processor.read("part", {"site": "a", "no": 1}) == []
    reader.close()


def test_a_server_without_a_ledger_is_reported_with_its_remedy(shown: Site) -> None:
    shown.submit(t().insert("item", {"id": 1}))
    shown.execute("alter table processor.ledger rename to gone")
    with pytest.raises(processor.DatabaseUnavailable, match="init-db"):
        processor.read("item", {"id": 1})
    shown.execute("alter table processor.gone rename to ledger")
    assert len(processor.read("item", {"id": 1})) == 1


# Documents, and rows that exist.

SERIES = """
create table series (
    no int generated always as identity primary key, code text unique, open bool, doc jsonb,
    old json, twice int generated always as (no * 2) stored);
create unique index on series (open) where code = 'a';
create domain document as jsonb;
create table "a.b" (
    id int primary key, own jsonb not null default '{}', other document not null default '{}',
    doc json);
"""


@pytest.fixture
def documents(site_of: Callable[..., Site]) -> Iterator[Site]:
    site = site_of(overlay={"tables": {"series": "no", '"a.b"': "id"}})
    site.execute(SERIES)
    yield reading(site)
    reader.close()
    loader.configure({})


def test_a_pending_document_is_read_with_its_order_and_its_null(documents: Site) -> None:
    documents.submit(
        t().insert(("a.b",), {"id": 1, "doc": {"b": 1, "a": [{"d": 1, "c": 2}]}}),
        t().insert('public."a.b"', {"id": 2, "doc": Json(None)}),
    )
    for name in ('"a.b"', ("public", "a.b")):
        rows = processor.read(name)
        assert str(rows[0]["doc"]) == "{'b': 1, 'a': [{'d': 1, 'c': 2}]}"
        assert (rows[1]["doc"], rows[1].source, rows.complete) == (None, "buffer", True)
    step(documents.drain())
    assert processor.read('"a.b"', {"id": 1}) == rows[:1]
    assert documents.execute('select id, doc::text from "a.b" order by id')[1] == (2, "null")


def test_a_null_that_may_be_that_of_json_is_not_taken_for_that_of_sql(documents: Site) -> None:
    documents.execute("insert into series (code, doc) values ('s', null), ('j', 'null')")
    row = {"no": 8, "code": "p", "doc": Json(None)}
    documents.submit(t().insert("series", row, overriding=True))
    assert [row["code"] for row in processor.read("series", {"doc": None})] == ["s"]
    assert [row["code"] for row in processor.read("series", {"doc": Json(None)})] == ["j"]
    documents.submit(t().update("series", {"code": "null"}, where={"doc": None}))
    rows = processor.read("series")
    # The server's rows are both read as None: only PostgreSQL can tell which of them is meant.
    assert (rows.complete, {row["code"] for row in rows}) == (False, {"s", "j", "p"})
    documents.submit(t().update("series", {"code": "json"}, where={"doc": Json(None)}))
    assert not processor.read("series").complete


def test_the_null_of_json_is_no_null_to_a_column_that_refuses_null(documents: Site) -> None:
    documents.execute("insert into \"a.b\" values (1, '{}', '{}'), (2, '{}', '{}')")
    documents.submit(
        t().update(("a.b",), {"own": Json(None)}, where={"id": 1}),
        t(attempts=1).update(("a.b",), {"own": None}, where={"id": 2}),
        t().update(("a.b",), {"other": Json(None)}, where={"id": 2}),
    )
    for _ in range(2):
        rows = processor.read('"a.b"')
        assert rows.complete
        assert [(r["id"], r["own"], r["other"]) for r in sorted(rows, key=lambda r: r["id"])] == [
            (1, None, {}), (2, {}, None),
        ]  # fmt: skip
        step(documents.drain())


def test_an_upsert_that_keeps_rows_is_read_as_postgresql_will_have_it(documents: Site) -> None:
    documents.execute("insert into series (code) values ('a'), ('b')")
    documents.submit(
        t().upsert("series", {"code": "b", "open": True}, ["code"], update=False),
        t().upsert("series", {"no": 2, "code": "c"}, ["no"], update=False, overriding=True),
        t().upsert("series", {"no": 7, "code": "d"}, ["no"], update=False, overriding=True),
    )
    rows = processor.read("series")
    assert rows.complete
    assert {(r["no"], r["code"], r["open"]) for r in rows} == {
        (1, "a", None), (2, "b", None), (7, "d", None),
    }  # fmt: skip
    step(documents.drain())
    rows = processor.read("series")
    assert {(r["no"], r["code"]) for r in rows} == {(1, "a"), (2, "b"), (7, "d")}


def test_what_a_generated_column_refuses_is_not_read(documents: Site) -> None:
    documents.execute("insert into series (code) values ('a')")
    documents.submit(
        t(attempts=1).insert("series", {"no": 7, "code": "b"}),
        t(attempts=1).insert("series", {"no": 7, "twice": 14}, overriding=True),
        t(attempts=1).update("series", {"no": 9}, where={"no": 1}),
        t(attempts=1).update("series", {"twice": 9}, where={"no": 1}),
        t(attempts=1).upsert("series", {"no": 7, "code": "a"}, ["code"], overriding=True),
    )
    assert [(row["no"], row["twice"]) for row in processor.read("series")] == [(1, 2)]
    step(documents.drain())
    assert [row[1] for row in documents.dead()] == ["428C9"] * 5


def test_an_upsert_by_a_partial_index_makes_a_read_incomplete(documents: Site) -> None:
    documents.submit(t().upsert("series", {"no": 1, "open": True, "code": "a"}, ["open"]))
    assert not processor.read("series").complete


def test_a_pending_write_has_the_version_of_its_envelope(documents: Site) -> None:
    documents.submit(
        t().insert("series", {"code": "x"}), t().insert("series", {"no": 7}, overriding=True)
    )
    found = map(json.loads, documents.redis.hgetall("processor:overlay").values())
    assert sorted(each.get("v", 1) for each in found) == [1, 2]
