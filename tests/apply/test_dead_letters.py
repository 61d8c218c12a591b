"""One poison transaction hurts only itself and those that share its key (P5).

It is isolated exactly, retried by policy, and then becomes a dead letter in PostgreSQL, which holds
its named keys until an operator decides.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from processor.apply import committer
from processor.runtime import drain_thread
from processor.telemetry import metrics
from processor.transaction.builder import Transaction
from processor.transaction.ids import new_id
from tests.harness import pages
from tests.harness.site import FAILING, Site, counted, step, write
from tests.harness.wait import wait_until

CHECKED = "create table checked (n int check (n > 0), place bigint generated always as identity)"
NOISY = """
create function see() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger see before insert on checked for each row execute function see();
"""


def dead_ids(site: Site) -> list[str]:
    return [row[0] for row in site.dead()]


# Isolated exactly.


@pytest.mark.parametrize("trigger", [False, True], ids=["folded", "row by row"])
@pytest.mark.parametrize(
    "poison",
    [{1}, {60}, {30}, {1, 2, 3}, {16, 17, 18}, {3, 20, 31, 58}, set(range(1, 61, 3))],
    ids=str,
)
def test_poison_is_isolated_exactly_at_any_place_in_the_batch(
    poison: set[int], trigger: bool, site: Site
) -> None:
    """Rule 16."""
    site.execute(CHECKED + (";" + NOISY if trigger else ""))
    drain = site.drain()
    values = [-n if n in poison else n for n in range(1, 61)]
    many = [Transaction().insert("checked", {"n": n}) for n in values]
    site.submit(*many)

    step(drain)

    assert site.one("select count(*) from checked") == 60 - len(poison)
    assert dead_ids(site) == [many[n - 1].id for n in sorted(poison)]
    assert {row[1] for row in site.dead()} == {"23514"}
    assert site.execute("select n from checked order by place") == [(n,) for n in values if n > 0]


POISON: dict[str, tuple[str, Any]] = {
    "no such table": ("42P01", lambda: Transaction().insert("nowhere", {"n": 1})),
    "no such column": ("42703", lambda: Transaction().insert("tape", {"m": 1})),
    "a text for a number": ("22P02", lambda: Transaction().insert("tape", {"n": "one"})),
    "too large": ("22003", lambda: Transaction().insert("tape", {"n": 2**31})),
    "not an integer": ("22P02", lambda: Transaction().insert("tape", {"n": 7.4})),
    "null": ("23502", lambda: Transaction().insert("tape", {"n": None})),
    "a value twice": ("23505", lambda: Transaction().insert("account", {"id": 1})),
    "a missing parent": ("23503", lambda: Transaction().insert("child", {"parent": 404})),
    "a check": ("23514", lambda: Transaction().insert("checked", {"n": -1})),
    "no row": ("PR002", lambda: Transaction().update(
        "account", add={"balance": 1}, where={"id": 404}, expect=1)),
    "too many rows": ("PR002", lambda: Transaction().delete("tape", {"scope": None}, expect=0)),
    "no such statement": ("42883", lambda: Transaction().statement("unheard_of")),
    "a missing parameter": ("42P02", lambda: Transaction().statement("say")),
    "the own schema": ("42501", lambda: Transaction().delete("processor.ledger", {"lane": "x"})),
}  # fmt: skip


@pytest.mark.parametrize("name", POISON)
def test_each_kind_of_poison_fails_alone_with_its_reason(name: str, site_of) -> None:
    site = site_of(statements={"say": "select %(word)s::text"}, retry={"attempts": 1})
    site.execute(f"{CHECKED}; create table child (parent int references account)")
    site.execute("insert into account values (1)")
    drain = site.drain()
    state, make = POISON[name]
    bad = make()
    site.submit(write(1), bad, write(2))

    step(drain)

    assert site.tape() == [1, 2]
    assert [row[:2] for row in site.dead()] == [(bad.id, state)]
    assert site.one("select outcome from processor.ledger where id = %s", (bad.id,)) == "dead"
    assert site.depth() == 0


@pytest.mark.parametrize("width", [1, 250], ids=["alone", "in a batch"])
def test_a_sqlstate_of_the_processor_is_explained_in_words(width: int, site: Site) -> None:
    """PostgreSQL's manual does not explain it."""
    drain = site.drain()
    bad = Transaction(attempts=1).update(
        "account", add={"balance": 1}, where={"id": 404}, expect=1)
    site.submit(bad, *(write(n) for n in range(1, width)))

    step(drain)

    assert site.dead() == [(
        bad.id, "PR002",
        "operations[0] update account: expected 1 row, matched 0",
    )]


def test_the_dead_letters_of_a_batch_are_one_line_of_the_log(site: Site, caplog) -> None:
    caplog.set_level(logging.INFO)
    site.execute(f"create table failing (s text check (s <> '{SECRET}'))")
    drain = site.drain()
    many = [Transaction().insert("failing", {"s": SECRET}) for _ in range(60)]
    site.submit(write(1), *many)

    step(drain)

    assert len(site.dead()) == 60
    logged = [each for each in caplog.records if "dead letter" in each.getMessage()]
    assert [(each.levelname, each.getMessage()) for each in logged] == [(
        "WARNING", f"lane default:0: 60 became dead letters, the first is {many[0].id}"
        " (23514 check_violation: operations[0] insert into failing: constraint failing_s_check):"
        " see `processor dead list`",
    )]


def test_an_unreadable_entry_is_logged_without_its_content(
    site: Site, caplog
) -> None:
    drain = site.drain()
    site.put({"v": "1", "tx": f'{{"{SECRET}": 1'})

    step(drain)

    assert len(site.dead()) == 1
    assert "lane default:0: 1 became dead letters" in caplog.text
    assert "(unreadable)" in caplog.text
    assert SECRET not in caplog.text


def test_poison_costs_few_round_trips(site_of, proxy_to, postgres_server) -> None:
    """Rule 16: bisection cost 26 to 115 round trips."""
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    site.execute(CHECKED)
    drain = site.drain()
    site.submit(Transaction().insert("checked", {"n": 1}))
    step(drain)
    proxy.latency(0.02)
    site.submit(*(Transaction().insert("checked", {"n": -(n % 50 == 0) or 1}) for n in range(250)))
    before = proxy.round_trips

    step(drain, looks=False)

    assert len(site.dead()) == 5
    assert proxy.round_trips - before <= 6


# Retried by policy.


def test_a_failure_is_retried_with_growing_waits_and_then_dead_lettered(site_of) -> None:
    """Each retry runs when its wait is over, not at the next interval."""
    site = site_of(retry={"attempts": 3, "delay": 0.2}, interval=20.0)
    site.execute(FAILING)
    site.start()
    bad = write(0, "x")
    started = time.time()
    retried = counted("retried")
    site.submit(bad, write(1))

    wait_until(site.dead)

    attempts, died, first = site.execute(
        "select attempts, extract(epoch from died_at)::float, (select extract(epoch from"
        " committed_at)::float from processor.ledger where outcome = 'applied')"
        " from processor.dead_letter"
    )[0]
    assert attempts == 3
    assert retried() == 2
    assert died - started >= 0.2 + 0.4
    # The entry that needs no retry has not waited for them.
    assert died - first >= 0.4
    site.empties()
    assert dead_ids(site) == [bad.id]


def test_each_wait_is_twice_the_previous_one_up_to_a_limit(site_of) -> None:
    """Plus up to a tenth, so that entries that failed together are not retried together."""
    site = site_of(retry={"attempts": 5, "delay": 60.0, "max_delay": 200.0})
    site.execute(FAILING)
    drain = site.drain()
    bad, retry = write(0, "x"), site.lane().retry
    site.submit(bad)

    for wait in (60.0, 120.0, 200.0, 200.0):
        before = time.time()
        wait_until(lambda: (step(drain), site.redis.zscore(retry, bad.id))[1])
        due = site.redis.zscore(retry, bad.id)
        assert before + wait <= due <= time.time() + wait * 1.1
        site.redis.zadd(retry, {bad.id: 0})
    wait_until(lambda: (step(drain), dead_ids(site) == [bad.id])[1])


def test_an_entry_whose_cause_of_failure_is_gone_commits_at_its_next_attempt(site_of) -> None:
    site = site_of(retry={"attempts": 9, "delay": 0.1, "max_delay": 0.2})
    site.execute(FAILING)
    site.start()
    retried = counted("retried")
    site.submit(write(1, "x"))
    wait_until(lambda: retried() >= 3)

    site.execute("delete from failing")

    site.commits(1, timeout=1.0)
    site.whole(1)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_transaction_may_set_its_number_of_attempts(attempts: int, site: Site) -> None:
    site.execute(FAILING)
    site.start()
    site.submit(write(1, "x", attempts=attempts))

    wait_until(site.dead)

    assert site.one("select attempts from processor.dead_letter") == attempts


def test_an_entry_that_can_never_succeed_is_not_retried(site: Site) -> None:
    drain = site.drain()
    site.submit(Transaction().insert("nowhere", {"n": 1}), write(1, attempts=9))

    step(drain)

    assert site.one("select attempts from processor.dead_letter") == 1
    assert site.parked() == 0


# Keys.


def test_only_entries_with_the_key_of_a_retry_wait_and_they_keep_their_order(site_of) -> None:
    """Rules 25 and 26: the failed entry is retried in its place, not at the end of the lane."""
    site = site_of(retry={"attempts": 9, "delay": 0.1, "max_delay": 0.2})
    site.execute(FAILING)
    site.start()
    site.submit(write(1, "x", key="k"), write(2, key="k"), write(3), write(4, key="other"))
    site.commits(3, 4)
    site.submit(write(5, key="k"), write(6))
    site.commits(3, 4, 6)
    site.parks(3)
    wait_until(lambda: site.depth() == 0)

    site.execute("delete from failing")

    site.commits(3, 4, 6, 1, 2, 5)
    site.submit(write(7, key="k"))
    site.commits(3, 4, 6, 1, 2, 5, 7)
    site.empties()
    assert site.redis.zcard(site.lane().blocked) == 0


@pytest.mark.parametrize("later", [False, True], ids=["together", "one after the other"])
def test_a_waiting_entry_blocks_its_other_keys(later: bool, site: Site) -> None:
    """Rule 25: an entry that waits holds its own keys in turn."""
    site.start()
    bad = Transaction(key="a").insert("nowhere", {"n": 1})
    if later:
        site.submit(bad)
        wait_until(site.dead)
    behind = [write(1, keys=["a", "b"]), write(2, key="b"), write(3, keys=["b", "c"])]
    site.submit(*([] if later else [bad]), *behind, write(4, key="c"), write(5, key="d"), write(6))
    site.commits(5, 6)
    site.parks(4)

    site.ask(bad.id, "discard")

    site.commits(5, 6, 1, 2, 3, 4)
    site.empties()


@pytest.mark.parametrize("request_", ["retry", "edit", "discard"])
def test_a_dead_letter_holds_its_named_keys_until_an_operator_decides(
    request_: str, site: Site
) -> None:
    """Rules 15 and 27."""
    site.execute(FAILING)
    site.start()
    bad = write(1, "x", key="k", attempts=1)
    site.submit(bad, write(2, key="k"), write(3))
    site.commits(3)
    wait_until(site.dead)
    site.submit(*(write(n, key="k") for n in range(4, 8)), write(8))
    site.commits(3, 8)
    site.parks(5)

    if request_ == "retry":
        site.execute("delete from failing")
    edited = write(11, "y", id=bad.id, key="k") if request_ == "edit" else None
    site.ask(bad.id, request_, edited)

    first = {"retry": [1], "edit": [11], "discard": []}[request_]
    site.commits(3, 8, *first, 2, 4, 5, 6, 7)
    site.empties()
    outcome = "discarded" if request_ == "discard" else "applied"
    assert site.execute("select outcome, request from processor.dead_letter") == [(outcome, None)]
    row = "select outcome, replace(hash::text, '-', '') from processor.ledger where id = %s"
    found = site.execute(row, (bad.id,))
    operations = json.loads((edited or bad).encode(0, 10_000).body)["operations"]
    digest = hashlib.blake2b(json.dumps(operations, separators=(",", ":")).encode(), digest_size=16)
    assert found == [(outcome, digest.hexdigest())]


def test_a_retry_that_fails_again_leaves_the_dead_letter_in_place(site: Site) -> None:
    site.execute(FAILING)
    site.start()
    bad = write(1, "x", key="k", attempts=1)
    site.submit(bad, write(2, key="k"))
    wait_until(site.dead)

    site.ask(bad.id, "retry")

    asked = "select request, attempts from processor.dead_letter"
    wait_until(lambda: site.execute(asked) == [(None, 2)])
    assert site.tape() == []
    assert site.parked() == 1
    assert site.one("select outcome from processor.ledger") == "dead"


def dead_letter(site: Site, bad: Transaction) -> None:
    """Make `bad` a dead letter, then remove the cause of its failure."""
    site.execute(FAILING)
    drain = site.drain(instance="before")
    site.submit(bad)
    while not site.dead():
        step(drain)
    drain.leave()
    site.execute("delete from failing")


def test_a_retry_waits_for_a_server_that_rejects_all_work(site: Site) -> None:
    """That is an outage, no matter how often the retry was tried (P4)."""
    bad = write(1, "x", attempts=1)
    dead_letter(site, bad)
    site.execute(
        "create table full_disk (yes bool); insert into full_disk values (true);"
        "create sequence refused; create or replace function fail() returns trigger"
        " language plpgsql as $$ begin"
        " if exists (select from full_disk) and nextval('refused') > 0 then"
        " raise exception using errcode = '53100'; end if; return new; end $$"
    )
    site.start()
    site.ask(bad.id, "retry")
    wait_until(lambda: site.one("select last_value from refused") >= 5)

    site.execute("delete from full_disk")

    site.commits(1)
    assert site.dead() == []


def test_a_retry_has_the_time_limit_of_its_transaction(site_of) -> None:
    site = site_of(
        database={"call_timeout": 1.5}, statements={"nap": "select pg_sleep(%(s)s)"}
    )
    bad = Transaction(attempts=1, timeout=10).statement("nap", {"s": 2.0})
    dead_letter(site, bad.insert("tape", {"n": 1, "scope": "x"}))
    site.start()

    site.ask(bad.id, "retry")

    site.commits(1)


def test_a_retry_that_an_operator_cancels_is_repeated(site_of) -> None:
    site = site_of(
        database={"statement_timeout": 10.0, "call_timeout": 12.0},
        statements={"nap": "select pg_sleep(%(s)s)"}, stop_timeout=20.0,
    )  # fmt: skip
    bad = Transaction(attempts=1).statement("nap", {"s": 0.6})
    dead_letter(site, bad.insert("tape", {"n": 1, "scope": "x"}))
    site.start()
    site.ask(bad.id, "retry")

    cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
    wait_until(lambda: site.execute(cancel))

    site.commits(1)


@pytest.mark.parametrize("request_", ["retry", "discard"])
def test_a_request_waits_for_a_dead_letter_that_another_session_locks(
    request_: str, site: Site, caplog
) -> None:
    bad = write(1, "x", attempts=1)
    dead_letter(site, bad)
    site.ask(bad.id, request_)
    outages = counted("outages")
    with closing(psycopg2.connect(site.dsn)) as other:
        with other.cursor() as cursor:
            cursor.execute("select from processor.dead_letter for update")
        site.start()
        wait_until(lambda: caplog.text.count("put off: SQLSTATE 55P03") >= 2)

    wait_until(lambda: not site.dead())
    assert site.tape() == ([1] if request_ == "retry" else [])
    assert outages() == 0


@pytest.mark.parametrize("request_", ["retry", "discard"])
def test_an_error_after_the_commit_of_a_decision_does_not_undo_it(
    request_: str, site: Site, monkeypatch
) -> None:
    """Rule 13: entries that wait for the key are applied at once."""
    bad = write(1, "x", key="k", attempts=1)
    dead_letter(site, bad)
    site.execute(
        "create sequence called; create function late() returns text language plpgsql as $$ begin"
        " if exists (select from processor.dead_letter where outcome <> 'dead')"
        " and nextval('called') = 1 then"
        " raise exception 'too late' using errcode = '57014'; end if; return ''; end $$"
    )
    site.submit(write(2, key="k"))
    site.ask(bad.id, request_)
    drain = site.drain()
    with monkeypatch.context() as patch:
        patch.setattr(committer, "_TAIL", f"{committer._TAIL} WHERE late() = ''")
        step(drain)
    assert site.one("select is_called from called")
    for _ in range(3):
        step(drain)

    assert site.dead() == []
    assert site.tape() == ([1, 2] if request_ == "retry" else [2])


def test_a_copy_of_a_waiting_entry_does_not_wait_as_well(site: Site) -> None:
    """The copy would never be released."""
    bad, waiting = write(1, "x", key="k", attempts=1), write(2, key="k")
    dead_letter(site, bad)
    site.start()
    site.submit(waiting)
    site.parks(1)
    site.submit(waiting)
    wait_until(lambda: not site.depth())

    site.ask(bad.id, "discard")
    site.commits(2)
    site.submit(write(3, key="k"))

    site.commits(2, 3)
    wait_until(lambda: site.redis.zcard(site.lane().blocked) == 0)


def test_entries_held_by_a_dead_letter_survive_a_restart(site: Site) -> None:
    first = site.drain(instance="first")
    bad = Transaction(key="k").insert("nowhere", {"n": 1})
    site.submit(bad, write(2, key="k"))
    step(first)
    first.leave()
    site.submit(write(3, key="k"), write(4))

    second = site.drain(instance="second")
    step(second)

    assert site.tape() == [4]
    assert site.parked() == 2


def test_blocked_keys_that_redis_lost_are_rebuilt_from_the_dead_letters(site: Site) -> None:
    first = site.drain(instance="first")
    site.submit(Transaction(key="k").insert("nowhere", {"n": 1}))
    step(first)
    first.leave()
    assert site.redis.delete(site.lane().blocked) == 1
    site.submit(write(2, key="k"), write(3))

    second = site.drain(instance="second")
    step(second)

    assert site.tape() == [3]
    assert site.parked() == 1


@pytest.mark.parametrize("page", [1, 250])
def test_a_dead_letter_holds_its_keys_while_a_full_redis_does_not_take_them(
    page: int, own_redis, site_of
) -> None:
    """Rules 20 and 27: neither in the passes after its death, nor after a crash."""
    site = site_of(redis=own_redis(), batch={"entries": page})
    first = site.drain(instance="first")
    step(first)
    bad = Transaction(keys=["j", "k"]).insert("nowhere", {"n": 1})
    site.submit(bad, write(2, key="k"), write(3, keys=["k", "l"]), write(4))
    site.redis.config_set("maxmemory", 1)
    for _ in range(3):
        step(first)
    assert site.tape() == [4]
    assert [row[0] for row in site.dead()] == [bad.id]
    assert site.depth() == 2

    first.leave()
    second = site.drain(instance="second")
    for _ in range(3):
        step(second)
    assert site.tape() == [4]

    site.redis.config_set("maxmemory", 0)
    site.submit(write(5, key="l"), write(6, key="j"), write(7))
    wait_until(lambda: step(second) or site.parked() == 4)
    assert site.tape() == [4, 7]
    site.ask(bad.id, "discard")
    wait_until(lambda: step(second) or site.parked() == 0)
    assert [n for n in site.tape() if n != 6] == [4, 7, 2, 3, 5]
    assert site.redis.zcard(site.lane().blocked) == 0


def test_parked_entries_stay_behind_a_dead_letter_whose_keys_a_full_redis_does_not_take(
    own_redis, site_of
) -> None:
    """Rules 20 and 27: Redis lost the line of the dead letter, and not that of what waits."""
    site = site_of(redis=own_redis())
    first = site.drain(instance="first")
    bad = Transaction(key="k").insert("nowhere", {"n": 1})
    site.submit(bad, write(2, key="k"), write(3, key="k"))
    step(first)
    first.leave()
    before = site.redis.zrange(site.lane().blocked, 0, 0)
    site.redis.zrem(site.lane().blocked, *before)
    site.redis.zadd(site.lane().retry, dict.fromkeys(site.redis.hkeys(site.lane().parked), 0))
    site.redis.config_set("maxmemory", 1)

    second = site.drain(instance="second")
    for _ in range(3):
        step(second)

    assert site.tape() == []
    site.redis.config_set("maxmemory", 0)
    site.ask(bad.id, "discard")
    wait_until(lambda: step(second) or site.parked() == 0)
    assert site.tape() == [2, 3]


def test_a_dead_letter_decided_while_no_processor_ran_releases_its_keys(site: Site) -> None:
    """Rule 26: an owner that is killed between commit and release leaves no entry waiting."""
    first = site.drain(instance="first")
    bad = Transaction(key="k").insert("nowhere", {"n": 1})
    site.submit(bad, write(2, key="k"))
    step(first)
    first.leave()
    site.execute("update processor.dead_letter set outcome = 'discarded', resolved_at = now()")
    site.execute("update processor.ledger set outcome = 'discarded'")

    second = site.drain(instance="second")
    step(second)
    step(second)

    assert site.tape() == [2]
    assert site.parked() == 0


def test_the_count_of_dead_letters_follows_within_seconds(site: Site) -> None:
    """A paged operator reads it at once; without a change it is counted only every 10 s."""
    site.start()
    site.submit(write(1))
    site.commits(1)
    # By now the dead letters have been counted once.
    passes = counted("passes")
    wait_until(lambda: passes() >= 2)

    site.submit(Transaction().insert("nowhere", {"n": 1}))
    wait_until(lambda: pages.sample("dead_letters") == 1, 4.0)
    site.ask(dead_ids(site)[0], "discard")
    wait_until(lambda: pages.sample("dead_letters") == 0, 4.0)


def test_dead_letters_that_hold_no_keys_are_overtaken_in_order(site_of) -> None:
    """Rule 27: `dead_letter.hold: none`."""
    site = site_of(dead_letter={"hold": "none"})
    site.start()
    bad = [Transaction(key="k").insert("nowhere", {"n": n}) for n in range(3)]
    site.submit(write(1, key="k"), bad[0], write(2, key="k"), bad[1], bad[2], write(3, key="k"),
                write(4, key="other"), write(5))  # fmt: skip

    site.empties()

    assert [n for n in site.tape() if n < 4] == [1, 2, 3]
    assert sorted(site.tape()) == [1, 2, 3, 4, 5]
    assert sorted(dead_ids(site)) == sorted(t.id for t in bad)
    site.submit(write(6, key="k"))
    wait_until(lambda: 6 in site.tape())


def test_poison_without_a_key_holds_no_entry(site: Site) -> None:
    """Rule 25: it is overtaken; no key is derived from the rows that it writes."""
    site.execute("insert into account values (1)")
    drain = site.drain()
    poor = Transaction(attempts=1).update("account", add={"balance": 1}, where={"id": 1})
    bad = Transaction().update("account", add={"balance": 5}, where={"id": 1})
    bad.insert("nowhere", {"n": 1})
    site.submit(bad, poor)

    step(drain)

    assert site.one("select balance from account") == 1
    assert site.parked() == 0


# Entries that are not transactions.


def body(**fields: Any) -> bytes:
    given = {"id": new_id(), "operations": [{"op": "insert", "table": "tape", "values": {"n": 0}}]}
    return json.dumps(given | fields).encode()


def operations(*made: Any) -> bytes:
    return body(operations=list(made))


UNREADABLE: dict[str, dict[Any, Any]] = {
    "other fields": {"what": "ever"},
    "no version": {"tx": body()},
    "no body": {"v": "1"},
    "version 0": {"v": "0", "tx": body()},
    "empty version": {"v": "", "tx": body()},
    "version with a space": {"v": "1 ", "tx": body()},
    "version as a word": {"v": "one", "tx": body()},
    "empty body": {"v": "1", "tx": b""},
    "invalid JSON": {"v": "1", "tx": b"{"},
    "not UTF-8": {"v": "1", "tx": b'{"id": "\xff\xfe"}'},
    "a pickle": {"v": "1", "tx": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94."},
    "JSON of another kind": {"v": "1", "tx": b"[1, 2]"},
    "an unknown field": {"v": "1", "tx": body(sudo=True)},
    "no id": {"v": "1", "tx": body(id="")},
    "an id that is not a UUID": {"v": "1", "tx": body(id="42")},
    "no operations": {"v": "1", "tx": operations()},
    "operations of another kind": {"v": "1", "tx": body(operations="drop table tape")},
    "an unknown operation": {"v": "1", "tx": operations({"op": "drop", "table": "tape"})},
    "an operation without a table": {"v": "1", "tx": operations({"op": "insert", "values": {}})},
    "nested too deeply": {"v": "1", "tx": b'{"operations":' + b"[" * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_entry_is_a_dead_letter_with_its_raw_bytes(name: str, site: Site) -> None:
    """Rule 10; the entries after it are applied."""
    drain = site.drain()
    site.submit(write(1, attempts=1))
    entry_id = site.put(UNREADABLE[name])
    site.submit(write(2, attempts=1))

    step(drain)

    assert site.tape() == [1, 2]
    assert site.depth() == 0
    [(found, raw, state, reason)] = site.execute(
        "select entry, body, outcome, reason from processor.dead_letter"
    )
    assert (found, state) == (entry_id, "dead")
    assert reason.startswith("unreadable: ")
    kept = UNREADABLE[name]
    for value in [kept["tx"]] if kept.keys() == {"v", "tx"} else kept.values():
        assert (value if isinstance(value, bytes) else value.encode()) in bytes(raw)


STRANGE = {
    "a version of 5000 digits": {"v": "9" * 5000, "tx": body()},
    "an infinite time limit": {"v": "1", "tx": body(timeout=1e308)},
    "a time limit below zero": {"v": "1", "tx": body(timeout=-5.0)},
    "attempts below zero": {"v": "1", "tx": body(attempts=-5)},
    "a key with a NUL": {"v": "1", "tx": body(key="a\0b")},
    "an empty key": {"v": "1", "tx": body(key="")},
    "a very long key": {"v": "1", "tx": body(key="k" * 100_000)},
    "key and keys": {"v": "1", "tx": body(key="a", keys=["b"])},
    "keys twice": {"v": "1", "tx": body(keys=["a", "a"])},
    "text with a NUL": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "values": {"n": 0, "scope": "a\0b"}})},
    "a lone surrogate": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "values": {"n": 0, "scope": "\ud800"}})},
    "no columns": {"v": "1", "tx": operations({"op": "insert", "table": "tape", "values": {}})},
    "no rows": {"v": "1", "tx": operations({"op": "insert", "table": "tape", "rows": []})},
    "rows without columns": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "rows": [{}, {}]})},
    "rows that differ": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "rows": [{"n": 0}, {"scope": "x"}]})},
    "a conflict without columns": {"v": "1", "tx": operations(
        {"op": "upsert", "table": "account", "values": {"id": 1}, "conflict": []})},
    "a conflict on another column": {"v": "1", "tx": operations(
        {"op": "upsert", "table": "account", "values": {"id": 1}, "conflict": ["balance"]})},
    "a column set and added": {"v": "1", "tx": operations(
        {"op": "update", "table": "account", "set": {"balance": 1}, "add": {"balance": 1},
         "where": {"id": 1}})},
    "a negative expect": {"v": "1", "tx": operations(
        {"op": "delete", "table": "account", "where": {"id": 1}, "expect": -1})},
    "a table name with SQL": {"v": "1", "tx": operations(
        {"op": "insert", "table": 'tape"; drop table tape; --', "values": {"n": 0}})},
    "a name with a NUL": {"v": "1", "tx": operations(
        {"op": "insert", "table": "ta\0pe", "values": {"n": 0}})},
    "an empty name": {"v": "1", "tx": operations(
        {"op": "insert", "table": "", "values": {"n": 0}})},
    "a column name with SQL": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "values": {'n") values (1); --': 0}})},
    "an object as a value": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "values": {"n": {"a": [1, {"b": None}]}}})},
    "a number of 4000 digits": {"v": "1", "tx": operations(
        {"op": "insert", "table": "tape", "values": {"n": 10**4000}})},
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_no_entry_in_the_stream_stops_the_lane(name: str, site: Site) -> None:
    """A client with the right to XADD can write entries that `submit` would refuse."""
    drain = site.drain()
    site.submit(write(1, attempts=1))
    site.put(STRANGE[name])
    site.submit(write(2, attempts=1), write(3, key="k", attempts=1))

    step(drain)
    step(drain)

    assert [n for n in site.tape() if n] == [1, 2, 3]
    assert site.depth() == 0
    assert len(site.dead()) + site.parked() + site.tape().count(0) <= 1
    assert site.one("select count(*) from account") <= 1


def test_an_entry_of_a_later_release_stays_and_the_lane_reports_it(site: Site) -> None:
    """Rule 10: during a rolling deploy another processor can decode it."""
    site.start()
    site.put({"v": "3", "tx": "a form of a later release"})
    site.submit(*(write(n, attempts=1) for n in range(1, 301)))

    site.commits(*range(1, 301))
    wait_until(lambda: "later release" in site.reason, message=lambda: site.reason)

    wait_until(lambda: site.depth() == 1, message=site.tale)
    assert site.dead() == []
    site.submit(write(301))
    site.commits(*range(1, 302))
    wait_until(lambda: site.depth() == 1, message=site.tale)


# One id, one outcome.


def test_the_same_id_with_another_payload_is_a_dead_letter_and_not_applied(site: Site) -> None:
    """Rule 15."""
    drain = site.drain()
    first = write(1)
    second = write(2, id=first.id)
    site.submit(first)
    step(drain)
    site.submit(second, write(3))
    step(drain)

    assert site.tape() == [1, 3]
    assert dead_ids(site) == [first.id]
    assert "another payload" in site.dead()[0][2]
    assert site.one("select outcome from processor.ledger where id = %s", (first.id,)) == "applied"


def test_the_same_id_with_another_payload_within_a_batch(site: Site) -> None:
    drain = site.drain()
    first = write(1)
    site.submit(first, write(2, id=first.id), write(3), first)

    step(drain)

    assert site.tape() == [1, 3]
    assert dead_ids(site) == [first.id]
    assert site.depth() == 0


@pytest.mark.parametrize("request_", ["retry", "discard"])
def test_a_decision_on_another_payload_keeps_the_outcome_of_the_first(
    request_: str, site: Site
) -> None:
    """Rule 15: one id has one outcome, that of its first payload."""
    site.start()
    first = write(1)
    site.submit(first)
    site.commits(1)
    before = site.execute("select id, hash, outcome from processor.ledger")
    site.submit(write(2, id=first.id))
    wait_until(site.dead)

    site.ask(first.id, request_)

    asked = "select request from processor.dead_letter"
    wait_until(lambda: site.one(asked) is None)
    assert site.execute("select id, hash, outcome from processor.ledger") == before
    assert site.tape() == [1]


def test_a_copy_of_a_dead_transaction_changes_nothing(site: Site) -> None:
    """A lost reply to submit adds it to the stream twice; the second time it is already dead."""
    drain = site.drain()
    bad = Transaction().insert("nowhere", {"n": 1})
    site.submit(bad)
    step(drain)
    site.execute("create table nowhere (n int)")
    site.submit(bad, write(1))
    step(drain)

    assert site.one("select count(*) from nowhere") == 0
    assert dead_ids(site) == [bad.id]
    assert site.tape() == [1]
    assert site.depth() == 0


# What is shown.

SECRET = "c4n4ry-s3cret"


def test_values_are_neither_logged_nor_shown(site_of, caplog, capfd) -> None:
    """Rule 19: PostgreSQL's message contains them; only the dead letter's row stores it."""
    caplog.set_level(logging.DEBUG)
    site = site_of(statements={"cast": "select %(x)s::int"}, retry={"attempts": 2, "delay": 0.05})
    site.execute(f"""
        create table kept (s text primary key, n int check (s <> '{SECRET}'));
        insert into kept values ('{SECRET}-2');
        create domain short as text check (length(value) < 5);
        create table brief (s short, v varchar(3))""")
    site.execute(FAILING + f"insert into failing values ('{SECRET}')")
    site.start()
    site.submit(
        Transaction().insert("kept", {"s": SECRET, "n": 1}),
        Transaction().insert("kept", {"s": f"{SECRET}-2", "n": 1}),
        Transaction().insert("kept", {"s": "x", "n": SECRET}),
        Transaction().insert("brief", {"s": SECRET}),
        Transaction().insert("brief", {"v": SECRET}),
        Transaction().statement("cast", {"x": SECRET}),
        Transaction(timeout=0.5).insert("kept", {"s": SECRET, "n": 1}),
        write(1, SECRET),
        write(2),
    )
    site.put({"v": "1", "tx": json.dumps({"id": SECRET, "operations": []})})
    site.put({"v": "1", "tx": f'{{"{SECRET}": 1'})
    wait_until(lambda: len(site.dead()) == 10)
    site.empties()

    shown = json.dumps(drain_thread.state()) + "".join(str(figure) for figure in metrics.snapshot())
    states = [site.redis.get(key) or b"" for key in site.redis.scan_iter("*state*")]
    published = b"".join(states).decode()
    reasons = "".join(f"{state} {reason}" for _, state, reason in site.dead())
    for text in (caplog.text, shown, published, reasons, "".join(capfd.readouterr())):
        assert SECRET not in text
    assert SECRET in site.one("select string_agg(detail, '') from processor.dead_letter")


def test_the_password_of_a_server_is_never_shown(site_of, caplog, own_redis) -> None:
    caplog.set_level(logging.DEBUG)
    server = own_redis({"requirepass": SECRET})
    site = site_of(redis=server)
    bad_redis = {"url": server.url.replace(SECRET, f"{SECRET}x")}
    bad_database = {"dsn": f"postgresql://nobody:{SECRET}@127.0.0.1:1/x"}
    for settings in (site.changed(redis=bad_redis), site.changed(database=bad_database)):
        drain = site.drain(settings)
        step(drain)
        assert drain.gate.is_shut
        assert SECRET not in drain.gate.reason
        assert SECRET not in repr(drain.state())

    assert SECRET not in caplog.text
