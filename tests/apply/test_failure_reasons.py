"""Why a transaction failed, as an operator reads it: which operation, on what, and how."""

from __future__ import annotations

import logging
from decimal import Decimal

import pytest

from processor.telemetry import metrics
from processor.transaction.builder import Transaction
from tests.harness.cli import Cli
from tests.harness.pages import sample
from tests.harness.site import Site, step
from tests.harness.wait import wait_until

SCHEMA = """
create table orders (id int primary key, amount numeric(6, 2) not null, day date, note varchar(5),
                     place point, parent int references orders deferrable initially deferred);
create table "new\nline" (n int check (n > 0));
create function refuse() returns trigger language plpgsql as $$
    begin raise exception 'secret-canary' using errcode = 'P0007', table = 'elsewhere'; end $$;
create table guarded (n int);
create trigger refuse before insert on guarded for each row execute function refuse();
insert into orders values (1, 1);
"""

ORDER = {"id": 2, "amount": 1}


def order(**values: object) -> Transaction:
    return Transaction(attempts=1).insert("orders", ORDER | values)


def expecting(*, expect: int) -> Transaction:
    return Transaction(attempts=1).insert("orders", ORDER).update(
        "account", add={"balance": 1}, where={"id": 404}, expect=expect)  # fmt: skip


CASES = {
    "a text where a number belongs": (
        order(amount="secret-canary"),
        "22P02 invalid_text_representation: operations[0] insert into orders.amount",
    ),
    "a value that only PostgreSQL can judge": (
        order(place="secret-canary"),
        "22P02 invalid_text_representation: operations[0] insert into orders.place",
    ),
    "a number that is too large": (
        order(amount=Decimal(12345678)),
        "22003 numeric_value_out_of_range: operations[0] insert into orders",
    ),
    "a text that is too long": (
        order(note="secret-canary"),
        "22001 string_data_right_truncation: operations[0] insert into orders",
    ),
    "null": (
        order(amount=None), "23502 not_null_violation: operations[0] insert into orders.amount",
    ),
    "a key that exists": (
        Transaction(attempts=1).insert("account", {"id": 8}).insert("orders", ORDER | {"id": 1}),
        "23505 unique_violation: operations[1] insert into orders: constraint orders_pkey",
    ),
    "a constraint that is checked at the end": (
        order(parent=404).insert("account", {"id": 8}),
        "23503 foreign_key_violation: operations[0] insert into orders:"
        " constraint orders_parent_fkey",
    ),
    "another number of rows": (
        expecting(expect=1), "operations[1] update account: expected 1 row, matched 0",
    ),
    "another number of several rows": (
        expecting(expect=2), "operations[1] update account: expected 2 rows, matched 0",
    ),
    "a table that does not exist": (
        Transaction(attempts=1).insert("account", {"id": 8}).delete("nowhere", where={"id": 1}),
        "42P01 undefined_table: operations[1] delete from nowhere",
    ),
    "a column that does not exist": (
        Transaction(attempts=1).upsert("orders", ORDER | {"colour": 1}, conflict=["id"]),
        "42703 undefined_column: operations[0] upsert into orders",
    ),
    "what a trigger raises": (
        Transaction(attempts=1).insert("guarded", {"n": 1}).insert("account", {"id": 8}),
        "P0007: operations[0] insert into guarded: table elsewhere",
    ),
    "a name that would break the line": (
        Transaction(attempts=1).insert("new\nline", {"n": 0}),
        "23514 check_violation: operations[0] insert into new\\nline:"
        " constraint new\\nline_n_check",
    ),
}


def test_a_reason_names_operation_table_column_and_counts_and_no_value(
    site: Site, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    """The same text in `dead list`, in `explain` and in the log."""
    caplog.set_level(logging.WARNING)
    site.execute(SCHEMA)
    drain = site.drain()
    for transaction, _ in CASES.values():
        site.submit(transaction)
        step(drain)

    reasons = {failed: reason for failed, _, reason in site.dead()}
    listed = {each["id"]: each["reason"] for each in cli.use(site.mapping).json("dead", "list")}
    for case, (transaction, expected) in CASES.items():
        reason = reasons[transaction.id]
        assert reason == expected or reason.startswith(f"{expected}: "), case
        assert listed[transaction.id] == reason
        assert f"({reason})" in caplog.text
    assert len(reasons) == len(CASES)
    assert reason in cli.json("explain", transaction.id)[0]["why"]
    assert "secret-canary" not in str(reasons) + caplog.text


def test_the_reason_of_a_failed_retry_is_as_good(site: Site, cli: Cli) -> None:
    site.execute(SCHEMA)
    site.start()
    site.submit(expecting(expect=1))
    wait_until(site.dead, message=site.tale)
    failed = site.dead()[0][0]
    site.execute("alter table orders add check (amount > 5) not valid")

    said = cli.use(site.mapping)("dead", "retry", failed, "--wait", "10s")

    reason = ("23514 check_violation: operations[0] insert into orders:"
              " constraint orders_amount_check")  # fmt: skip
    assert f"failed again: {reason}" in said.out
    assert site.dead()[0][2] == reason


def test_dead_letters_are_counted_by_the_class_of_their_sqlstate(site: Site) -> None:
    site.execute(SCHEMA)
    before = {state: metrics.value("dead", sqlstate_class=state) for state in ("22", "other")}
    site.start()
    site.submit(order(amount="x"))
    site.put({"v": "1", "tx": "nonsense"})

    wait_until(lambda: len(site.dead()) == 2)
    for state, number in before.items():
        assert sample("dead_total", sqlstate_class=state) == number + 1
