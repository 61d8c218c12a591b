"""When a transaction is applied: at once, when it is due, or earlier than others by weight."""

from __future__ import annotations

import datetime
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from processor.errors import InvalidTransaction
from processor.transaction import statements
from processor.transaction.builder import Transaction
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

#: With these settings only the doorbell explains a commit within seconds.
PATIENT = {"interval": 50.0, "watchdog": {"limit": 200.0}, "database": {"takeover": 290.0}}


def committed_at(site: Site, ids: Iterable[str]) -> list[float]:
    """Wait until all are committed; return when each was, Unix seconds."""
    wanted = list(ids)
    query = (
        "select id::text, extract(epoch from committed_at)::float8 from processor.ledger"
        " where id = any (%s::uuid[]) and outcome = 'applied'"
    )
    found = wait_until(
        lambda: len(rows := site.execute(query, (wanted,))) == len(wanted) and dict(rows),
        message=site.tale,
    )
    return [found[i] for i in wanted]


# Due.


@pytest.mark.parametrize("own", [True, False], ids=["own process", "other process"])
def test_a_delayed_transaction_is_applied_when_it_is_due_and_not_before(
    site_of: Callable[..., Site], own: bool
) -> None:
    site = site_of(interval=0.5)
    if own:
        site.start()
    else:
        site.run()
        wait_until(lambda: site.one("select count(*) from processor.lane") == 3)
    began = time.time()
    soon, later = write(1, delay=1.2), write(2, delay=0.4)
    moment = datetime.datetime.fromtimestamp(began + 0.8, datetime.UTC)
    exact = write(3, due=moment.astimezone(datetime.timezone(datetime.timedelta(hours=-5))))
    past = write(4, due="2020-01-01T00:00:00Z")

    site.submit(soon, later, exact, past)

    times = committed_at(site, [soon.id, later.id, exact.id, past.id])
    for at, due in zip(times, (1.2, 0.4, 0.8, 0.0), strict=True):
        assert -0.01 <= at - began - due < 1.5, (at - began, due)
    assert site.tape() == [4, 2, 3, 1]


def test_a_delayed_transaction_enters_the_order_when_it_is_due(site: Site) -> None:
    site.submit(write(1, key="k", delay=0.3), write(2, key="k"), write(3, key="k", delay=0.6))
    site.start()

    site.commits(2, 1, 3)
    site.submit(write(4, key="k"))
    site.commits(2, 1, 3, 4)


def test_a_delayed_transaction_submitted_twice_is_one_effect(site: Site) -> None:
    once = write(1, delay=0.3)
    site.start()
    for _ in range(3):
        site.submit(once)

    site.commits(1)
    site.submit(once, write(2, delay=0.5))
    site.commits(1, 2)


def test_submitting_a_delayed_transaction_again_keeps_its_due_time(site: Site) -> None:
    """Otherwise a client that repeats its submits would postpone it indefinitely."""
    once = write(1, idempotency_key="a", delay=60)
    site.submit(once)
    due = site.redis.zrange(site.lane().scheduled, 0, -1, withscores=True)
    time.sleep(0.01)

    site.submit(once, write(1, idempotency_key="a", delay=60))

    assert site.redis.zrange(site.lane().scheduled, 0, -1, withscores=True) == due


def test_due_transactions_are_not_starved_by_an_endless_backlog(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(statements={"nap": "select pg_sleep(0.01)"}, batch={"entries": 5})
    site.execute("create table parent (id int primary key)")
    site.execute("create table child (parent int references parent)")
    # The first pass has found no delayed transactions.
    site.start()
    busy = [write(n).statement("nap") for n in range(400)]
    retried = write(2000, attempts=50).insert("child", {"parent": 1})
    site.submit(retried, *busy)
    wait_until(lambda: len(site.tape()) > 10)
    site.execute("insert into parent values (1)")

    site.submit(write(1000, delay=0.3, queue="high"))

    wait_until(lambda: {1000, 2000} <= set(site.tape()), 30, site.tale)
    assert site.depth() > 50, "the backlog ended too early"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": "5"}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": True}, "delay"),
        ({"due": "2026-11-21T06:00:00"}, "due"),
        ({"due": datetime.datetime(2026, 11, 21)}, "due"),
        ({"due": "tomorrow"}, "due"),
        ({"due": 5}, "due"),
        ({"due": "2026-11-21T06:00:00Z", "delay": 5}, "due"),
    ],
)
def test_an_invalid_delay_or_due_time_is_refused(options: Any, field: str) -> None:
    with pytest.raises(InvalidTransaction) as refused:
        Transaction(**options)
    assert refused.value.field == field


# Weights.


def test_the_high_queue_waits_for_a_batch_or_two_not_for_the_backlog(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(statements={"nap": "select pg_sleep(0.01)"}, batch={"entries": 5})
    site.submit(*(write(n, "low", queue="low").statement("nap") for n in range(300)))
    site.start()

    for turn in range(5):
        before = len(site.tape())
        wait_until(lambda b=before: len(site.tape()) > b + 10)
        site.submit(write(turn, "high", queue="high"))
        seen = len(site.tape())
        wait_until(lambda t=turn: t in site.tape("high"))
        order = [scope for (scope,) in site.execute("select scope from tape order by place")]
        place = [n for n, scope in enumerate(order) if scope == "high"][turn]
        # The current batch, the prefetched one, and a few rows committed since the count.
        assert place - seen <= 20, (turn, seen, place)
    assert site.depth("low:0") > 50, "the backlog ended too early"


def test_full_queues_share_the_batches_by_their_weights(site_of: Callable[..., Site]) -> None:
    site = site_of(batch={"entries": 10})
    for queue in ("low", "default", "high"):
        site.submit(*(write(n, queue, queue=queue) for n in range(600)))
    site.start()
    wait_until(lambda: len(site.tape()) == 1800)

    order = [scope for (scope,) in site.execute("select scope from tape order by place")]

    # Of twelve batches of ten, eight are high, three default and one low. The high queue is empty
    # after nine dozen batches.
    dozens = [Counter(order[start : start + 120]) for start in range(0, 720, 120)]
    for dozen in dozens:
        assert abs(dozen["high"] - 80) <= 10
        assert abs(dozen["default"] - 30) <= 10
        assert abs(dozen["low"] - 10) <= 10
    assert sum(dozens, Counter()) == pytest.approx({"high": 480, "default": 180, "low": 60}, abs=10)
    for queue in ("low", "default", "high"):
        assert site.tape(queue) == list(range(600))


# The doorbell.


def test_a_submit_in_another_process_wakes_the_drain_within_milliseconds(
    site_of: Callable[..., Site],
) -> None:
    """The doorbell waits from the cursor of the drain (rule 30)."""
    site = site_of(**PATIENT)
    site.run()
    wait_until(lambda: site.one("select count(*) from processor.lane") == 3)
    waits = []
    for n in range(30):
        one = write(n, queue=("high", "default", "low")[n % 3])
        began = time.time()
        site.submit(one)
        waits.append(committed_at(site, [one.id])[0] - began)

    assert statistics.median(waits) < 0.1, sorted(waits)
    assert max(waits) < 5.0, sorted(waits)


def test_a_new_lane_is_found_at_the_interval(
    site_of: Callable[..., Site],
) -> None:
    """The doorbell does not wait for a new lane yet; afterwards it does."""
    site = site_of(interval=0.5)
    site.run()
    wait_until(lambda: site.one("select count(*) from processor.lane") == 3)
    other = site_of(namespace=site.settings.namespace, queues={"nightly": {}})

    first = write(1, queue="nightly")
    began = time.time()
    other.submit(first)

    assert committed_at(site, [first.id])[0] - began < 3.0


def test_a_submit_in_the_same_process_needs_no_doorbell(site_of: Callable[..., Site]) -> None:
    site = site_of(**PATIENT)
    site.start()
    site.redis.execute_command("ACL", "SETUSER", "default", "-xread")
    try:
        site.redis.client_kill_filter(_type="normal", skipme=True)
        site.submit(write(1))
        site.commits(1, timeout=10)
        site.submit(write(2))
        site.commits(1, 2, timeout=10)
    finally:
        site.redis.execute_command("ACL", "SETUSER", "default", "+xread")


def test_no_statements_remain_from_another_test() -> None:
    """Statements are registered for the process: a test must remove those that it registers."""
    assert list(statements.names()) == []
