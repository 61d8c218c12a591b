"""Every operation, by builder and by JSON, on real tables; and invalid transactions."""

from __future__ import annotations

import datetime
import enum
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import processor
from processor.errors import ConfigError, InvalidTransaction
from processor.transaction import ids as identity
from processor.transaction import statements
from processor.transaction.builder import Transaction
from processor.transaction.operations import Insert
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

TABLES = """
create table orders (id int primary key, account int, amount numeric, note text);
insert into account select n from generate_series(1, 9) n;
create schema "odd schema";
create table "odd schema"."Se""lect %s" ("from" int, "a b%" text, "ключ" text);
create table day (day date primary key, total bigint);
"""
STATEMENTS = {
    "close_day": "insert into day select %(day)s::date, sum(balance) from account -- so be it",
    "raise": "update account set balance = balance * 100 %% 1000 + %(by)s where id = %(id)s;",
    "nap": "select pg_sleep(%(seconds)s)",
    "note": "update orders set note = %(note)s where id = %(id)s /* for all */",
}


@pytest.fixture
def shop(site_of: Callable[..., Site]) -> Site:
    """A site with tables and statements, and a running processor."""
    site = site_of(statements=STATEMENTS)
    site.execute(TABLES)
    site.start()
    return site


def ends(site: Site, *transactions: Transaction) -> list[str]:
    """Submit and wait; return for each the SQLSTATE of its dead letter, "" if it was applied."""
    site.submit(*transactions)
    ids = [str(one.id) for one in transactions]
    query = "select id::text, outcome from processor.ledger where id = any (%s::uuid[])"
    wait_until(lambda: len(site.execute(query, (ids,))) == len(set(ids)), message=site.tale)
    died = {i: state for i, state, _ in site.dead()}
    return [died.get(i, "") for i in ids]


def rows(site: Site, table: str) -> list[tuple[Any, ...]]:
    return site.execute(f"select * from {table} order by 1")


# Operations, each as a builder call and as JSON.

ORDER = {"id": 1, "account": 7, "amount": 25, "note": None}
BOTH: list[tuple[Callable[[Transaction], Transaction], dict[str, Any]]] = [
    (
        lambda t: t.insert("orders", ORDER),
        {"op": "insert", "table": "orders", "values": ORDER},
    ),
    (
        lambda t: t.insert("orders", rows=[{"id": 1}, {"id": 2}]),
        {"op": "insert", "table": "orders", "rows": [{"id": 1}, {"id": 2}]},
    ),
    (
        lambda t: t.upsert("orders", ORDER, ["id"]),
        {"op": "upsert", "table": "orders", "values": ORDER, "conflict": ["id"]},
    ),
    (
        lambda t: t.update("orders", {"note": "x"}, add={"amount": 5}, where={"id": 1}, expect=1),
        {"op": "update", "table": "orders", "set": {"note": "x"}, "add": {"amount": 5},
         "where": {"id": 1}, "expect": 1},
    ),
    (
        lambda t: t.delete("orders", {"id": 1, "note": None}, expect=0),
        {"op": "delete", "table": "orders", "where": {"id": 1, "note": None}, "expect": 0},
    ),
    (
        lambda t: t.statement("close_day", {"day": "2026-11-21"}),
        {"op": "statement", "name": "close_day", "params": {"day": "2026-11-21"}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("build", "form"), BOTH, ids=[form["op"] for _, form in BOTH])
def test_builder_and_json_form_are_the_same_bytes(
    build: Callable[[Transaction], Transaction], form: dict[str, Any]
) -> None:
    options = {"key": "k", "attempts": 2, "timeout": 1.5, "batch": "b", "trace": "t"}
    built = build(Transaction(**options))
    written = {"id": built.id, "operations": [form], **options}

    encoded = built.encode(0.0, 9999)

    assert Transaction.parse(written).encode(0.0, 9999) == encoded
    assert Transaction.parse(json.dumps(written)).encode(0.0, 9999) == encoded
    assert Transaction.parse(json.dumps(written).encode()).encode(0.0, 9999) == encoded


def test_the_operations_of_a_transaction_run_in_order(shop: Site) -> None:
    whole = (
        Transaction(key="order-42")
        .insert("orders", {"id": 1, "account": 7, "amount": 25, "note": "new"})
        .insert("orders", rows=[{"id": n, "note": "many"} for n in (2, 3, 4)])
        .update("account", add={"balance": 25}, where={"id": 7}, expect=1)
        .update("account", {"balance": 3}, where={"id": 8})
        .update("orders", {"note": None}, add={"amount": 0.5}, where={"id": 1})
        .upsert("orders", {"id": 2, "note": "twice"}, ["id"])
        .upsert("orders", {"id": 5}, ["id"])
        .upsert("orders", {"id": 5}, ["id"])
        .delete("orders", {"id": 3}, expect=1)
        .delete("orders", {"note": None, "amount": None}, expect=1)
        .statement("close_day", {"day": "2026-11-21"})
        .statement("raise", {"by": -1, "id": 7})
        .statement("note", {"note": "'quoted' %s \\ -- ", "id": 4})
    )

    assert ends(shop, whole) == [""]

    assert rows(shop, "orders") == [
        (1, 7, 25.5, None), (2, None, None, "twice"), (4, None, None, "'quoted' %s \\ -- "),
    ]  # fmt: skip
    assert [row for row in rows(shop, "account") if row[1]] == [(7, 499), (8, 3)]
    assert [total for _, total in rows(shop, "day")] == [28]


def test_a_transaction_is_atomic(shop: Site) -> None:
    half = (
        Transaction()
        .insert("orders", {"id": 1})
        .update("account", add={"balance": 5}, where={"id": 1})
        .insert("orders", {"id": 1})
    )

    assert ends(shop, half, write(1), half) == ["23505", "", "23505"]
    assert rows(shop, "orders") == []
    assert not any(balance for _, balance in rows(shop, "account"))


@pytest.mark.parametrize("several", [1, 6])
def test_a_different_number_of_rows_than_expected_is_poison(shop: Site, several: int) -> None:
    shop.execute("insert into orders (id, account) values (1, 7), (2, 7)")
    unmet = [
        lambda: Transaction().update("orders", {"note": "x"}, where={"account": 7}, expect=1),
        lambda: Transaction().update("orders", {"note": "x"}, where={"account": 7}, expect=0),
        lambda: Transaction().update("account", add={"balance": 1}, where={"id": 99}, expect=1),
        lambda: Transaction().delete("orders", {"account": 7}, expect=3),
        lambda: Transaction().delete("orders", {"account": 8}, expect=1),
    ]
    before = rows(shop, "orders"), rows(shop, "account")

    for make in unmet:
        made = [make() for _ in range(several)]
        assert ends(shop, *made, write(1)) == ["PR002"] * several + [""]
    assert (rows(shop, "orders"), rows(shop, "account")) == before

    met = Transaction().update("orders", {"note": "x"}, where={"account": 7}, expect=2)
    assert ends(shop, met, Transaction().delete("orders", {"account": 7}, expect=2)) == ["", ""]
    assert rows(shop, "orders") == []


def test_names_are_quoted_and_never_sql(shop: Site) -> None:
    odd = '"odd schema"."Se""lect %s"'
    name = 'odd schema.Se"lect %s'
    made = Transaction().insert(name, {"from": 1, "a b%": "x%s", "ключ": "знач"})
    made.update(name, {"a b%": "y"}, add={"from": 1}, where={"ключ": "знач"}, expect=1)
    made.upsert("orders", {"id": 3}, ["id"])

    hostile = [
        Transaction().insert("orders; drop table orders", {"id": 1}),
        Transaction().insert('orders"; drop table orders; --', {"id": 1}),
        Transaction().insert("orders", {'id") values (1); --': 1}),
        Transaction().update("orders", {"id": 1}, where={"id = 1 or 1": 1}),
        Transaction().insert("orders", {"id": "1); drop table orders; --"}),
        Transaction().insert("processor.ledger", {"id": identity.new_id()}),
        Transaction().insert("pg_catalog.pg_class", {"oid": 1}),
        Transaction().statement("nothing"),
        Transaction().statement("raise", {"by": 1}),
        Transaction().statement("raise", {"by": 1, "id": 1, "more": 1}),
        Transaction().statement("raise", {"by": "1; drop table orders", "id": 1}),
    ]

    assert ends(shop, made) == [""]
    assert rows(shop, odd) == [(2, "y", "знач")]
    assert ends(shop, *hostile) == [
        "42P01", "42P01", "42703", "42703", "22P02", "42501", "42501", "42883", "42P02", "42P02",
        "22P02",
    ]  # fmt: skip
    assert rows(shop, "orders") == [(3, None, None, None)]


def test_only_tables_on_the_allow_list_can_be_written(site_of: Callable[..., Site]) -> None:
    site = site_of(database={"tables": ["orders"]})
    site.execute(TABLES)
    site.start()

    states = ends(
        site,
        Transaction().insert("orders", {"id": 1}),
        Transaction().insert("account", {"id": 100}),
        Transaction().insert("orders", {"id": 2}).insert("account", {"id": 100}),
    )

    assert states == ["", "42501", "42501"]
    assert [row[0] for row in rows(site, "orders")] == [1]


def test_a_comment_at_the_end_of_a_statement_swallows_neither_the_next_one_nor_the_commit(
    shop: Site,
) -> None:
    made = Transaction().statement("close_day", {"day": "2026-11-21"}).insert("orders", {"id": 1})
    last = Transaction().insert("orders", {"id": 2}).statement("close_day", {"day": "2026-11-22"})

    assert ends(shop, made, last, write(1)) == ["", "", ""]

    assert [row[0] for row in rows(shop, "orders")] == [1, 2]
    assert len(rows(shop, "day")) == 2
    assert shop.status == "running"


def test_a_timeout_makes_a_slow_transaction_poison_and_no_other(shop: Site) -> None:
    slow = Transaction(timeout=0.1, attempts=1).statement("nap", {"seconds": 0.4})
    patient = Transaction(attempts=1).statement("nap", {"seconds": 0.3})

    assert ends(shop, write(1), slow, patient, write(2)) == ["", "57014", "", ""]
    assert shop.tape() == [1, 2]


def test_the_attempts_of_a_transaction_override_the_setting(shop: Site) -> None:
    shop.execute(
        "create function fail() returns int language plpgsql as $$ begin raise 'no'; end $$"
    )
    statements.statement("fail", "select fail()")

    assert ends(shop, Transaction(attempts=2).statement("fail")) == ["P0001"]

    assert shop.execute("select attempts from processor.dead_letter") == [(2,)]


# Identity.


def test_the_id_is_generated_when_the_transaction_is_made(shop: Site) -> None:
    made = Transaction().insert("orders", {"id": 1})
    generated = made.id

    assert uuid.UUID(generated).version == 7
    assert [receipt.id for receipt in shop.submit(made, made)] == [generated, generated]
    assert ends(shop, made) == [""]
    assert [row[0] for row in rows(shop, "orders")] == [1]
    assert Transaction().id != Transaction().id


def test_ids_sort_by_the_time_when_they_were_made() -> None:
    made = [identity.new_id() for _ in range(2000)]

    assert len(set(made)) == len(made)
    assert sum(a > b for a, b in itertools.pairwise(made)) < 20, "within a microsecond"
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in made)


def test_an_idempotency_key_always_gives_the_same_id(shop: Site) -> None:
    first = Transaction(idempotency_key="invoice 7").insert("orders", {"id": 1})
    again = Transaction.parse(
        {"idempotency_key": "invoice 7",
         "operations": [{"op": "insert", "table": "orders", "values": {"id": 1}}]}
    )  # fmt: skip

    assert first.id == again.id == "961cc620-4370-5f22-b4a3-5f3820815d21"
    assert identity.derived_id("invoice 7") == "1773dde8-b66d-502d-a502-ae9e8a72af8d", "as in 0.1"
    assert ends(shop, first, again, Transaction(idempotency_key="invoice 8").insert("orders", {
        "id": 2})) == ["", "", ""]  # fmt: skip
    assert [row[0] for row in rows(shop, "orders")] == [1, 2]
    assert Transaction(id=uuid.UUID(first.id)).id == Transaction(id=first.id.upper()).id


def test_the_same_id_with_another_payload_is_filed_and_not_applied(shop: Site) -> None:
    first = Transaction(idempotency_key="k").insert("orders", {"id": 1})
    other = Transaction(idempotency_key="k").insert("orders", {"id": 2})
    assert ends(shop, first) == [""]

    shop.submit(other)

    wait_until(shop.dead)
    assert [reason for _, _, reason in shop.dead()] == [
        "the id was used before for another payload"
    ]
    assert [row[0] for row in rows(shop, "orders")] == [1]


# With, and the public names.


@pytest.fixture
def configured(shop: Site) -> Iterator[Site]:
    """A site whose settings are those of this process."""
    processor.configure(shop.mapping)
    yield shop
    processor.configure({})


def test_with_submits_unless_the_block_raises(configured: Site) -> None:
    with processor.Transaction(key="k") as made:
        made.insert("orders", {"id": 1})
        assert configured.depth() == 0
    never = processor.Transaction()
    with pytest.raises(ZeroDivisionError), never:
        never.insert("orders", {"id": 1 // 0})
    with pytest.raises(InvalidTransaction, match="must not be empty"), processor.Transaction():
        pass
    processor.submit({"operations": [{"op": "insert", "table": "orders", "values": {"id": 3}}]})

    assert made.receipt.id == made.id
    assert never.receipt is None
    wait_until(lambda: [row[0] for row in rows(configured, "orders")] == [1, 3])


def test_submit_takes_the_json_form_as_text_bytes_and_mapping(configured: Site) -> None:
    forms = [{"operations": [{"op": "insert", "table": "orders", "values": {"id": n}}]}
             for n in range(4)]  # fmt: skip
    receipts = [
        processor.submit(json.dumps(forms[0])),
        processor.submit(json.dumps(forms[1]).encode()),
        *processor.submit_many([forms[2], processor.Transaction.parse(forms[3])]),
    ]

    assert len({receipt.id for receipt in receipts}) == 4
    assert {receipt.lane for receipt in receipts} == {"default:0"}
    wait_until(lambda: [row[0] for row in rows(configured, "orders")] == [0, 1, 2, 3])


def test_a_task_is_not_supported_yet_and_refused() -> None:
    with pytest.raises(InvalidTransaction, match="task"):
        Transaction.parse({"operations": [{"op": "task", "name": "send", "args": {}}]})


# Registered statements are checked when they are registered.


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("select 1; select 2", "2 statements"),
        ("select 1;; commit", "statements"),
        ("", "0 statements"),
        ("-- nothing", "0 statements"),
        ("commit", "begins with COMMIT"),
        ("  /* c */ rollback", "begins with ROLLBACK"),
        ("set search_path = x", "begins with SET"),
        ("drop table orders", "begins with DROP"),
        ("do $$ begin commit; end $$", "begins with DO"),
        ("prepare p as select 1", "begins with PREPARE"),
        ("select %s", "a lone %"),
        ("select 10 % 3", "a lone %"),
        ("select 1; -- and more", "after a semicolon"),
    ],
)
def test_a_statement_that_would_affect_more_than_its_transaction_is_refused(
    sql: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        statements.statement("bad", sql)
    assert statements.find("bad") is None


# Entries that other programs add to the stream.


def foreign(operation: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"operations": [operation or {"op": "statement", "name": "fail"}]} | more


ALL = {"table": "tape", "where": {}}
FOREIGN = [
    foreign({"op": "insert", "table": "a.b.c", "values": {"id": 1}}),
    foreign({"op": "insert", "table": "", "values": {"id": 1}}),
    foreign({"op": "insert", "table": ".", "values": {"id": 1}}),
    foreign({"op": "insert", "table": "t" * 999, "values": {"id": 1}}),
    foreign({"op": "insert", "table": "tape", "values": {}}),
    foreign({"op": "insert", "table": "tape", "rows": []}),
    foreign({"op": "insert", "table": "tape", "rows": [{}, {"n": 1}]}),
    foreign({"op": "insert", "table": "tape", "values": {"scope": "\0"}}),
    foreign({"op": "insert", "table": "tape", "values": {"n": [[[]]]}}),
    foreign({"op": "upsert", "table": "tape", "values": {"n": 1}, "conflict": []}),
    foreign({"op": "delete", **ALL}),
    foreign({"op": "delete", **ALL, "expect": 1}),
    foreign({"op": "update", **ALL, "set": {"n": 1}}),
    foreign({"op": "update", **ALL, "add": {"n": 1}}),
    foreign(key="\0"),
    foreign(key=""),
    foreign(keys=["", "\0\0"]),
    foreign(due="soon"),
    foreign(attempts=-5),
    foreign(timeout=-1),
]


@pytest.mark.parametrize("body", FOREIGN, ids=lambda body: json.dumps(body)[:70])
def test_an_entry_that_submit_would_refuse_dies_and_the_lane_continues(
    site: Site, body: dict[str, Any]
) -> None:
    statements.statement("fail", "select 1 / 0")
    site.start()
    body = body | {"id": identity.new_id()}

    site.submit(write(1))
    site.put({"v": 1, "tx": json.dumps(body)})
    site.submit(write(2))

    site.commits(1, 2)
    wait_until(lambda: site.depth() == 0 and len(site.dead()) == 1, message=site.tale)
    assert site.dead()[0][0] == body["id"] or "unreadable" in site.dead()[0][2]


class Mood(str, enum.Enum):  # noqa: UP042
    CALM = "calm"


class Number(enum.IntEnum):
    THREE = 3


def test_members_of_enumerations_are_their_values_wherever_they_stand() -> None:
    """str() of a member of a (str, Enum) class is its name, as in "Mood.CALM"."""
    given = {"mood": Mood.CALM, "list": [Mood.CALM, Number.THREE], "map": {Mood.CALM: Mood.CALM}}
    made = Transaction(key=Mood.CALM).insert(Mood.CALM, given)
    made.update("t", {"mood": Mood.CALM}, where={Mood.CALM: Mood.CALM})
    made.statement("s", {"p": Mood.CALM, "q": [Number.THREE]})
    plain = {"mood": "calm", "list": ["calm", 3], "map": {"calm": "calm"}}
    encoded = made.encode(0.0, 10_000)

    assert json.loads(encoded.body)["operations"] == [
        {"op": "insert", "table": "calm", "values": plain},
        {"op": "update", "table": "t", "set": {"mood": "calm"}, "where": {"calm": "calm"}},
        {"op": "statement", "name": "s", "params": {"p": "calm", "q": [3]}},
    ]
    assert [type(key) for key in encoded.keys] == [str]
    assert repr(made.operations[0]) == repr(Insert("calm", plain))


def test_a_time_that_is_none_is_refused_at_the_door() -> None:
    """pandas.NaT is a datetime, whose text PostgreSQL cannot read."""

    class NaT(datetime.datetime):
        def __ne__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(InvalidTransaction, match=r"operations\[0\].values.at: is NaT"):
        Transaction().insert("t", {"at": NaT(2026, 11, 28)})
