"""The TPC-B load while the processor is killed: balances agree with the history (P2, P5).

As in pgbench, each transaction adds to three balances and writes one row of history, without keys.
One in a hundred is submitted twice, one in a thousand violates a CHECK with its own row.
"""

from __future__ import annotations

import random

import pytest

from processor.transaction.builder import Transaction
from tests.harness.site import Site
from tests.harness.wait import wait_until

BRANCHES, TELLERS, ACCOUNTS = 4, 40, 4000

TABLES = f"""
create table branches (bid int primary key, balance bigint not null default 0);
create table tellers (tid int primary key, bid int not null, balance bigint not null default 0);
create table accounts (aid int primary key, bid int not null, balance bigint not null default 0);
create table history (
    id uuid not null, tid int, bid int, aid int, delta int not null check (abs(delta) <= 5000));
insert into branches select g from generate_series(1, {BRANCHES}) g;
insert into tellers select g, g % {BRANCHES} + 1 from generate_series(1, {TELLERS}) g;
insert into accounts select g, g % {BRANCHES} + 1 from generate_series(1, {ACCOUNTS}) g;
"""


def deposit(choice: random.Random, *, poison: bool) -> Transaction:
    """Return one deposit. Its row of history comes last, so poison must undo the balances."""
    tid, aid = choice.randint(1, TELLERS), choice.randint(1, ACCOUNTS)
    bid = tid % BRANCHES + 1
    delta = 9999 if poison else choice.randint(-5000, 5000)
    made = Transaction()
    made.update("accounts", add={"balance": delta}, where={"aid": aid}, expect=1)
    made.update("tellers", add={"balance": delta}, where={"tid": tid}, expect=1)
    made.update("branches", add={"balance": delta}, where={"bid": bid}, expect=1)
    return made.insert(
        "history", {"id": made.id, "tid": tid, "bid": bid, "aid": aid, "delta": delta}
    )


def work(count: int, choice: random.Random) -> tuple[list[Transaction], set[str]]:
    """Return the transactions to submit, copies included, and the ids of the poison ones."""
    bad = set(choice.sample(range(count), count // 1000))
    made = [deposit(choice, poison=n in bad) for n in range(count)]
    submitted = list(made)
    for copy in choice.sample(made, count // 100):
        submitted.insert(choice.randint(0, len(submitted)), copy)
    return submitted, {made[n].id for n in bad}


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(200_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_the_sums_agree_after_two_kills(count: int, site: Site) -> None:
    site.execute(TABLES)
    choice = random.Random(count)
    submitted, poison = work(count, choice)
    processor = site.run()

    for start in range(0, len(submitted), 1000):
        site.submit(*submitted[start : start + 1000])
    for part in (1, 2):
        goal = count * part // 3
        wait_until(lambda goal=goal: written(site) >= goal, count / 200)
        processor.kill()
        processor = site.run()
    site.empties(timeout=count / 200)

    sums = "select sum(balance) from "
    total = site.one("select sum(delta) from history")
    assert [site.one(sums + table) for table in ("branches", "tellers", "accounts")] == [total] * 3
    for table, key in (("branches", "bid"), ("tellers", "tid"), ("accounts", "aid")):
        differ = (
            f"select count(*) from {table} t left join (select {key}, sum(delta) as delta from"
            f" history group by {key}) h using ({key}) where t.balance <> coalesce(h.delta, 0)"
        )
        assert site.one(differ) == 0, table
    assert site.execute("select count(*), count(distinct id) from history") == [
        (count - len(poison), count - len(poison))
    ]
    assert {row[0] for row in site.dead()} == poison
    assert {row[1] for row in site.dead()} == {"23514"}
    assert processor.terminate() == 0


def written(site: Site) -> int:
    return int(site.one("select count(*) from history"))
