"""Verdicts: each SQLSTATE in the table, then what the drain does about it on a real server.

Every transaction that must survive has one attempt only, so a test fails if the attempt is spent.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest
from psycopg2 import errorcodes

from processor.apply import committer as committer_module
from processor.apply.committer import Committer
from processor.apply.retry import is_final
from processor.apply.verdict import ErrorReply, Verdict, judge
from processor.connections.postgres_session import PostgresSession
from processor.errors import DatabaseUnavailable
from processor.ledger import outcomes
from processor.ledger.sqlstates import ENDS_ISOLATION
from processor.runtime import drain_thread
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until

OUTAGE, CONTENTION, POISON = Verdict.OUTAGE, Verdict.CONTENTION, Verdict.POISON

TABLE = {
    "53000 53100 53200 53300": OUTAGE,
    "58000 58030": OUTAGE,
    "40001 40P01 55P03": CONTENTION,
    "57014": CONTENTION,
    "PR001": Verdict.FENCED,
    "PR002 P0001 P0002": POISON,
    "22000 22003 22012 22P02 23502 23503 23505 23514 23P01": POISON,
    "42501 42601 42703 42883 42P01": POISON,
    "53400 54000 54001 54011 58P01": POISON,
    "26000 42P05 0A000": POISON,
    "21000 44000 55000 2D000 F0000 ZZ999": POISON,
    # The server's only if it does not commit without the entry either.
    "08000 08003 08006 08P01 57P01 57P02 57P03 57P05 25006 28000 28P01 3D000": POISON,
    "XX000 XX001 XX002": POISON,
}  # fmt: skip
ROWS = [(state, verdict) for states, verdict in TABLE.items() for state in states.split()]


@pytest.mark.parametrize(("state", "verdict"), ROWS)
def test_the_table_of_verdicts(state: str, verdict: Verdict) -> None:
    assert judge(ErrorReply(state)) is verdict


@pytest.mark.parametrize("state", [state for state, _ in ROWS])
def test_an_error_that_leaves_the_session_idle_is_unknown_whatever_its_sqlstate(state: str) -> None:
    """Rule 13."""
    assert judge(ErrorReply(state, in_transaction=False)) is Verdict.UNKNOWN


@pytest.mark.parametrize("state", ["26000", "42P05", "0A000"])
def test_a_prepared_statement_that_the_server_does_not_have_is_prepared_again(state: str) -> None:
    """Rule 17."""
    assert judge(ErrorReply(state, prepared=True)) is Verdict.STALE_PLAN


def test_a_repeated_id_is_recognized_by_the_table_that_refused_it() -> None:
    """Rule 14: a table `ledger` in another schema is a table of the user."""
    assert judge(ErrorReply("23505", "processor", "ledger")) is Verdict.APPLIED
    assert judge(ErrorReply("23505", "public", "ledger")) is POISON
    assert judge(ErrorReply("23505", "processor", "dead_letter")) is POISON


def test_a_cancelled_statement_is_the_entrys_fault_only_beyond_its_limit() -> None:
    assert judge(ErrorReply("57014", over_limit=True)) is POISON
    assert judge(ErrorReply("57014", over_limit=False)) is CONTENTION


#: Judged poison, but they end the isolation, and the entries are then applied one by one.
APPLIED_ALONE = {"40000", "40002", "40003", "55P02", "55P04", "57000"}
#: Outages of which isolation would not have to end: it commits the other entries, or fails too.
NOT_OF_ONE_ENTRY = {"58P02", "58P03"}


def test_isolation_ends_with_every_state_that_concerns_the_whole_batch() -> None:
    """Rule 16: SQL and Python judge by one list, and differ only where it is harmless."""
    known = {v for v in vars(errorcodes).values() if isinstance(v, str) and len(v) == 5}
    for state in known:
        ends = re.match(ENDS_ISOLATION, state) is not None
        if state in APPLIED_ALONE:
            assert ends, state
        elif state in NOT_OF_ONE_ENTRY:
            assert not ends, state
        else:
            assert ends == (judge(ErrorReply(state)) is not POISON), state


def test_only_failures_that_can_never_succeed_skip_their_retries() -> None:
    """The parent that a 23503 misses can be on its way in another lane, and the partition that a
    23514 without the name of a constraint misses can be made."""
    final = {state for state, _ in ROWS if is_final(state)}
    assert final >= {"22000", "22003", "23502", "23505", "42P01", "42703", "42883"}
    assert is_final("23514", "amount_check")
    assert not is_final("23514")
    assert not final & {"23503", "P0001", "PR002", "57014", "53400", "54001", "58P01", "42501"}


# On a real server: a row of the table `tape` can raise any SQLSTATE.

RAISE = """
create function raise_state() returns trigger language plpgsql as $$
begin
    if new.scope is not null then
        raise exception 'as requested' using errcode = new.scope;
    end if;
    return new;
end $$;
create trigger raise_state before insert on tape for each row execute function raise_state();
"""


@pytest.mark.parametrize("prepare", [True, False], ids=["prepared", "plain"])
@pytest.mark.parametrize(
    "state",
    ["53400", "54000", "54001", "58P01", "P0001", "21000", "44000", "55000", "22012", "23514",
     "42501", "42883", "PR002", "0A000", "26000", "42P05", "2D000", "XX000", "XX001", "08001",
     "08006", "28P01", "3D000", "57P01", "57P03", "25006"],
)  # fmt: skip
def test_a_state_that_is_the_entrys_own_fault_fails_that_entry_alone(
    state: str, prepare: bool, site_of
) -> None:
    site = site_of(database={"prepare": prepare})
    site.execute(RAISE)
    drain = site.drain()
    bad = write(0, state, attempts=1)
    site.submit(write(1, attempts=1), write(2, attempts=1), bad, write(3, attempts=1))
    site.submit(*(write(n, attempts=1) for n in range(4, 40)))

    step(drain)

    assert site.tape() == list(range(1, 40))
    assert [row[:2] for row in site.dead()] == [(bad.id, state)]
    assert site.depth() == 0


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014"])
def test_contention_pauses_the_lane_without_dead_letters(state: str, site: Site) -> None:
    site.execute(RAISE)
    drain = site.drain()
    site.submit(write(1, attempts=1), write(2, state, attempts=1), write(3, attempts=1))

    step(drain)
    lane = drain.owners.lanes["default:0"]
    assert lane.health.reason.startswith("contended")
    assert site.dead() == []
    assert site.depth() + len(site.tape()) >= 3
    site.execute("drop trigger raise_state on tape")
    wait_until(lambda: lane.health.paused_until < time.monotonic())
    step(drain)

    site.whole(3)


@pytest.mark.parametrize("state", ["53100", "53200", "53300", "58030"])
def test_a_state_of_the_server_shuts_the_gate_without_dead_letters(
    state: str, site: Site
) -> None:
    site.execute(RAISE)
    drain = site.drain()
    site.submit(write(1, attempts=1), write(2, state, attempts=1), write(3, attempts=1))

    for _ in range(8):
        step(drain)
        assert drain.gate.is_shut
        assert state in drain.gate.reason
    assert site.dead() == []
    site.execute("drop trigger raise_state on tape")
    step(drain)

    assert not drain.gate.is_shut
    site.whole(3)


#: The server refuses whatever writes, with this state: the ledger is the first to meet it.
REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin raise exception 'as requested' using errcode = '{}'; end $$;
create trigger refuse before update on processor.lane for each row execute function refuse();
"""


@pytest.mark.parametrize("state", ["XX000", "XX001", "25006", "57P03", "08006"])
@pytest.mark.parametrize("own", [True, False], ids=["one-by-one", "together"])
def test_a_state_that_a_commit_without_the_entries_meets_too_is_an_outage(
    own: bool, state: str, site: Site
) -> None:
    drain = site.drain()
    step(drain)
    site.execute(REFUSE.format(state))
    site.submit(*(write(n, attempts=1, timeout=1 if own else None) for n in (1, 2, 3)))

    step(drain)
    assert drain.gate.is_shut
    assert state in drain.gate.reason
    assert site.dead() == []
    site.execute("drop trigger refuse on processor.lane")
    step(drain)

    assert not drain.gate.is_shut
    site.whole(3)


def test_an_invalid_value_of_an_extension_stops_no_other_transaction(site_of) -> None:
    """elog(ERROR) has the SQLSTATE XX000: "invalid geometry", with retries until it is dead."""
    site = site_of(retry={"attempts": 2, "delay": 0.1})
    site.execute(RAISE)
    site.start()
    bad = write(0, "XX000", key="parcel-7")
    outages = counted("outages")

    site.submit(write(1), bad, *(write(n) for n in range(2, 50)))

    site.commits(*range(1, 50))
    wait_until(lambda: [row[:2] for row in site.dead()] == [(bad.id, "XX000")])
    assert outages() == 0


def test_a_row_without_a_partition_is_tried_again_and_a_row_that_is_refused_is_not(site_of) -> None:
    """Both are 23514; only a violated constraint has a name."""
    site = site_of(retry={"attempts": 20, "delay": 0.1})
    site.execute(
        "create table measured (at date, n int constraint small check (n < 9))"
        " partition by range (at)"
    )
    site.execute("create table november partition of measured for values from ('2026-11-01')"
                 " to ('2026-12-01')")  # fmt: skip
    site.start()
    early = Transaction().insert("measured", {"at": datetime.date(2026, 12, 1), "n": 1})
    wrong = Transaction().insert("measured", {"at": datetime.date(2026, 11, 1), "n": 10})
    site.submit(wrong, early, write(1))

    wait_until(lambda: [row[:2] for row in site.dead()] == [(wrong.id, "23514")])
    wait_until(lambda: site.parked() == 1)
    site.execute("create table december partition of measured for values from ('2026-12-01')"
                 " to ('2027-01-01')")  # fmt: skip

    wait_until(lambda: site.one("select count(*) from measured") == 1)
    site.empties()
    assert len(site.dead()) == 1


# Contention.


def lane_of(site: Site) -> dict[str, object]:
    return dict(drain_thread.state()["lanes"].get("default:0", {}))


def test_the_lane_waits_for_a_table_that_another_session_locks(site: Site) -> None:
    site.start()
    with closing(psycopg2.connect(site.dsn)) as other:
        with other.cursor() as cursor:
            cursor.execute("lock table tape in access exclusive mode")
        site.submit(*(write(n, attempts=1) for n in range(1, 21)))
        wait_until(lambda: "contended" in str(lane_of(site)["reason"]))
        assert lane_of(site)["status"] == "paused"
    site.commits(*range(1, 21))

    site.whole(20)
    wait_until(lambda: lane_of(site)["reason"] == "")


def test_nothing_is_lost_while_another_session_locks_the_dead_letters(site: Site) -> None:
    site.start()
    with closing(psycopg2.connect(site.dsn)) as other:
        with other.cursor() as cursor:
            cursor.execute("lock table processor.dead_letter in access exclusive mode")
        poison = Transaction().insert("nowhere", {"n": 1})
        site.submit(write(1, attempts=1), poison, write(2, attempts=1))
        site.shows("outage")
        assert site.depth() >= 1
    wait_until(lambda: [row[0] for row in site.dead()] == [poison.id])

    site.empties()
    assert site.tape() == [1, 2]


def test_an_operators_cancel_is_not_taken_for_the_time_limit(site_of) -> None:
    """The SQLSTATE is the same; only the processor's own clock distinguishes the two."""
    site = site_of(
        database={"statement_timeout": 10.0, "call_timeout": 12.0},
        statements={"nap": "select pg_sleep(%(s)s)"}, stop_timeout=20.0,
    )  # fmt: skip
    site.start()
    nap = Transaction(attempts=1).statement("nap", {"s": 0.6}).insert("tape", {"n": 2})
    retried = counted("retried")
    site.submit(write(1, attempts=1), nap, write(3, attempts=1))

    cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
    wait_until(lambda: site.execute(cancel))

    site.commits(1, 2, 3)
    site.whole(3)
    assert retried() == 0


def test_a_cancel_within_the_transactions_own_limit_is_not_taken_for_the_limit(site_of) -> None:
    """Its own limit is longer than the default. Cancelled twice, because once might be chance."""
    site = site_of(statements={"nap": "select pg_sleep(%(s)s)"}, stop_timeout=20.0)
    site.start()
    nap = Transaction(attempts=1, timeout=10).statement("nap", {"s": 1.6})
    retried = counted("retried")
    site.submit(nap.insert("tape", {"n": 1}))

    cancel = (
        "select pg_cancel_backend(pid) from pg_stat_activity"
        " where wait_event = 'PgSleep' and now() - query_start > interval '1.1 s'"
    )
    for _ in range(2):
        wait_until(lambda: site.execute(cancel))
        wait_until(lambda: not site.execute(cancel))

    site.commits(1)
    assert (retried(), site.dead()) == (0, [])


def test_a_deadlock_with_another_session_is_retried_without_an_attempt(site_of) -> None:
    site = site_of(database={"lock_timeout": 0.9})
    site.execute("insert into account values (1), (2)")
    site.execute(f"alter database {site.one('select current_database()')}"
                 " set deadlock_timeout = '100ms'")  # fmt: skip
    site.start()
    first = Transaction(attempts=1).update("account", add={"balance": 1}, where={"id": 1})
    with closing(psycopg2.connect(site.dsn)) as other, other.cursor() as cursor:
        cursor.execute("update account set balance = 10 where id = 2")
        site.submit(first.update("account", add={"balance": 1}, where={"id": 2}))
        waiting = "select exists (select from pg_locks where not granted)"
        wait_until(lambda: site.one(waiting))
        # Either session may be the deadlock's victim; the processor must succeed in both cases.
        with contextlib.suppress(psycopg2.errors.DeadlockDetected):
            cursor.execute("update account set balance = 10 where id = 1")
        other.commit()
    wait_until(lambda: site.one("select count(*) from processor.ledger") == 1)

    assert site.one("select min(balance) from account") in (1, 11)
    assert site.dead() == []


# Time.


@pytest.mark.parametrize("after_poison", [False, True], ids=["at first", "after poison"])
@pytest.mark.parametrize("own", [True, False], ids=["its own limit", "the default limit"])
def test_a_statement_beyond_its_limit_fails_alone(own: bool, after_poison: bool, site_of) -> None:
    """Rule 18: a limit counts for one statement; its neighbours neither wait nor fail with it."""
    # After poison a batch is isolated, and one limit counts for all of it: that of the call.
    site = site_of(
        statements={"nap": "select pg_sleep(%(s)s)"}, database={"call_timeout": 1.5}
    )
    drain = site.drain()
    if after_poison:
        site.submit(Transaction(attempts=1).insert("account", {"id": None}))
        step(drain)
    options = {"timeout": 0.1} if own else {}
    slow = Transaction(attempts=1, **options).statement("nap", {"s": 0.7 if own else 3.0})
    before = [write(n, attempts=1) for n in range(1, 4)]
    after = [write(n, attempts=1) for n in range(4, 10)]
    site.submit(*before, slow.insert("tape", {"n": 0}), *after)

    step(drain)

    assert site.tape() == list(range(1, 10))
    assert [row[:2] for row in site.dead()][-1] == (slow.id, "57014")
    assert site.depth() == 0


def test_many_quick_statements_together_may_take_longer_than_one(site_of) -> None:
    """Rule 18: the server's limit counts for each statement of a string, and none is slow."""
    site = site_of(
        statements={"nap": "select pg_sleep(0.2)"},
        database={"statement_timeout": 1.4, "call_timeout": 5.0},
    )  # fmt: skip
    drain = site.drain()
    site.submit(*(write(n, attempts=1).statement("nap") for n in range(1, 9)))

    step(drain)

    site.whole(8)


# Plans.


def unprepare(drain, _site: Site) -> None:
    drain.database.run("DEALLOCATE ALL")


def prepare_others(drain, _site: Site) -> None:
    taken = {row[0] for row in drain.database.run("SELECT name FROM pg_prepared_statements")}
    for n in range(1, 40):
        if (name := f"processor_{n}") not in taken:
            drain.database.run(f"PREPARE {name} AS SELECT {n}")


def widen(_drain, site: Site) -> None:
    site.execute("alter table tape alter n type bigint")


def rename(_drain, site: Site) -> None:
    site.execute("alter table tape rename to reel; alter table reel rename to tape")


def replace(_drain, site: Site) -> None:
    site.execute("create table copy (like tape including all); insert into copy (n) select n"
                 " from tape; drop table tape; alter table copy rename to tape")  # fmt: skip


@pytest.mark.parametrize("change", [unprepare, prepare_others, widen, rename, replace])
def test_stale_prepared_statements_do_no_harm(
    change: Callable[[object, Site], None], site: Site
) -> None:
    """Rule 17: 26000, 42P05, 0A000, and the 22003 of a plan made before the column was widened."""
    drain = site.drain()
    site.submit(*(write(n, attempts=1) for n in range(1, 4)))
    step(drain)

    change(drain, site)
    big = 3_000_000_000 if change is widen else 4
    site.submit(write(big, attempts=1), write(5, None, attempts=1))
    site.submit(Transaction(attempts=1).upsert("account", {"id": 1}, ["id"]))
    step(drain)
    step(drain)

    assert site.tape() == [1, 2, 3, big, 5]
    assert site.one("select count(*) from account") == 1
    assert site.dead() == []


def test_a_new_column_can_be_written_at_once(site: Site) -> None:
    drain = site.drain()
    site.submit(write(1, attempts=1))
    step(drain)
    site.execute("alter table tape add mood text")

    site.submit(Transaction(attempts=1).insert("tape", {"n": 2, "mood": "well"}))
    step(drain)

    assert site.tape() == [1, 2]
    assert site.dead() == []


def test_a_statement_that_postgresql_cannot_plan_is_poison_and_not_a_stale_plan(site_of) -> None:
    """An unsupported statement has the same SQLSTATE (0A000) as a stale plan."""
    site = site_of(statements={"never": "select count(*) from tape for update"})
    drain = site.drain()
    never = Transaction(attempts=1).statement("never")
    site.submit(write(1, attempts=1), never, write(2, attempts=1))

    step(drain)

    assert site.tape() == [1, 2]
    assert [row[:2] for row in site.dead()] == [(never.id, "0A000")]


# Systemic.


def test_the_same_failure_of_many_entries_holds_them_without_dead_letters(site: Site) -> None:
    site.start()
    site.submit(write(1, attempts=1))
    site.commits(1)

    site.execute("alter table tape rename to elsewhere")
    site.submit(*(write(n, attempts=1) for n in range(2, 60)))
    wait_until(lambda: lane_of(site)["failing"])
    assert "insert into tape fails with 42P01" in str(lane_of(site)["reason"])
    assert site.dead() == []
    site.execute("alter table elsewhere rename to tape")

    wait_until(lambda: sorted(site.tape()) == list(range(1, 60)))
    site.empties()
    assert site.dead() == []


def test_after_an_operator_lifts_the_pause_the_failures_become_dead_letters(site: Site) -> None:
    site.start()
    lost = [Transaction().insert("nowhere", {"n": n}) for n in range(30)]
    site.submit(*lost)
    wait_until(lambda: lane_of(site)["failing"])
    assert site.dead() == []

    site.redis.hincrby("processor:resumed", "default:0", 1)

    wait_until(lambda: [row[0] for row in site.dead()] == [t.id for t in lost])
    site.empties()
    site.submit(write(1, attempts=1))
    site.commits(1)


def test_a_few_of_the_same_failure_are_dead_letters(site: Site) -> None:
    drain = site.drain()
    lost = [Transaction().insert("nowhere", {"n": n}) for n in range(24)]
    site.submit(*lost)

    step(drain)

    assert [row[0] for row in site.dead()] == [t.id for t in lost]
    assert site.depth() == 0


# Crashers.

CRASH = {"crash": "select pg_terminate_backend(pg_backend_pid())"}


def test_an_entry_that_crashes_its_session_is_dead_and_its_neighbours_commit(
    site_of,
) -> None:
    site = site_of(statements=CRASH)
    drain = site.drain()
    crasher = Transaction(key="k").insert("tape", {"n": 0}).statement("crash")
    site.submit(
        *(write(n, attempts=1) for n in range(1, 6)),
        crasher,
        write(7, key="k", attempts=1),
        *(write(n, attempts=1) for n in range(8, 12)),
    )
    for _ in range(30):
        step(drain)
        if site.dead():
            break
    step(drain)
    step(drain)

    assert [(row[0], row[1]) for row in site.dead()] == [(crasher.id, "PR003")]
    assert "crashed its PostgreSQL session" in site.dead()[0][2]
    assert site.tape() == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert (site.depth(), site.parked()) == (0, 1)


def test_a_condemned_entry_takes_no_other_entry_along(site: Site) -> None:
    """Its batch may have grown since it was alone; the entries after it have no key to wait for."""
    drain = site.drain()
    step(drain)
    crasher = write(0)
    site.submit(crasher, *(write(n, attempts=1) for n in range(1, 6)))
    drain.owners.lanes["default:0"].health.condemned = crasher.id

    step(drain)
    step(drain)

    assert [(row[0], row[1]) for row in site.dead()] == [(crasher.id, "PR003")]
    assert site.tape() == [1, 2, 3, 4, 5]
    assert (site.depth(), site.parked()) == (0, 0)


def test_a_crasher_that_an_operator_retries_stays_dead_and_stops_no_other_work(site_of) -> None:
    site = site_of(statements=CRASH)
    drain = site.drain()
    crasher = Transaction().insert("tape", {"n": 0}).statement("crash")
    site.submit(crasher)
    for _ in range(30):
        step(drain)
        if site.dead():
            break

    drain.leave()
    site.start()
    site.ask(crasher.id, "retry")
    load = site.load(pace=0.02)
    wait_until(lambda: site.one("select request from processor.dead_letter") is None)

    assert [row[:2] for row in site.dead()] == [(crasher.id, "PR003")]
    load.grow(5)
    last = load.end()
    site.commits(*range(1, last + 1))
    site.shows("running")


# The outcome after an error.


@pytest.mark.parametrize("state", ["57014", "22012", "P0001"])
def test_an_error_after_the_commit_does_not_undo_it(state: str, site: Site, monkeypatch) -> None:
    """Rule 13: the ledger decides first, the table of verdicts second."""
    drain = site.drain()
    step(drain)
    site.execute(
        "create sequence called; create function late() returns text language plpgsql as $$ begin"
        " if nextval('called') = 1 then"
        f" raise exception 'too late' using errcode = '{state}'; end if; return ''; end $$"
    )
    site.submit(*(write(n, attempts=1) for n in range(1, 6)))
    known, judged = counted("known"), verdicts()
    with monkeypatch.context() as patch:
        patch.setattr(committer_module, "_TAIL", f"{committer_module._TAIL} WHERE late() = ''")
        step(drain, looks=False)

    site.whole(5)
    assert known() == 5
    assert judged() == 0


def test_an_error_after_the_commit_of_an_entry_alone_does_not_undo_it(
    site: Site, monkeypatch
) -> None:
    """Rule 13, for entries that are applied alone because they have a time limit of their own."""
    drain = site.drain()
    step(drain)
    site.execute(
        "create sequence called; create function late() returns text language plpgsql as $$ begin"
        " if nextval('called') = 1 then raise exception 'too late'; end if; return ''; end $$"
    )
    poison = Transaction(timeout=5).insert("tape", {"n": 2}).insert("tape", {"n": None})
    site.submit(write(1, attempts=1, timeout=5), poison, write(3, attempts=1, timeout=5))
    known, dead = counted("known"), counted("dead")
    with monkeypatch.context() as patch:
        patch.setattr(committer_module, "_TAIL", f"{committer_module._TAIL} WHERE late() = ''")
        step(drain, looks=False)

    assert site.tape() == [1, 3]
    assert [row[0] for row in site.dead()] == [poison.id]
    assert (known(), dead()) == (1, 1)


def verdicts() -> Callable[[], int]:
    """Count the verdicts that are pronounced from now on."""
    each = [counted("verdicts", verdict=verdict.value) for verdict in Verdict]
    return lambda: sum(count() for count in each)


def test_a_deferred_constraint_that_fails_at_commit_fails_one_entry(site: Site) -> None:
    """Rules 13 and 16: the session is idle after this error, too, but nothing was committed."""
    site.execute(
        "create table child (n int, parent int references account deferrable initially deferred)"
    )
    drain = site.drain()
    orphan = Transaction(attempts=1).insert("child", {"n": 1, "parent": 404})
    site.submit(write(1, attempts=1), orphan, write(2, attempts=1))
    judged = verdicts()

    step(drain)

    assert judged() == 1
    assert site.tape() == [1, 2]
    assert [row[:2] for row in site.dead()] == [(orphan.id, "23503")]
    assert site.one("select count(*) from child") == 0


def test_a_missing_parent_may_still_arrive(site_of) -> None:
    """23503 is retried: the parent can be in another lane."""
    site = site_of(retry={"attempts": 5, "delay": 0.2})
    site.execute("create table child (n int, parent int references account)")
    site.start()
    site.submit(Transaction().insert("child", {"n": 1, "parent": 7}))
    wait_until(site.parked)

    site.submit(Transaction(queue="high").insert("account", {"id": 7}))

    wait_until(lambda: site.one("select count(*) from child") == 1)
    site.empties()
    assert site.dead() == []


@pytest.mark.parametrize("body", ["INSERT INTO tape (n) VALUES (1) --", "SELECT 1 /* ", "SELECT '"])
def test_a_commit_counts_only_if_the_nonce_of_its_batch_comes_back(body: str, site: Site) -> None:
    """Rule 12: the driver reports success even if a comment swallowed the COMMIT."""
    session = PostgresSession(site.settings.database, Progress(), application="test")
    session.connect()
    committer = Committer(session, site.settings.database)
    committer.begin()
    with pytest.raises((DatabaseUnavailable, committer_module.DatabaseError)):
        committer.commit(body)

    session.close()
    assert site.tape() == []


def test_a_registered_statement_may_end_in_a_comment(site_of) -> None:
    """Rule 12: what follows the statement does not become part of the comment."""
    site = site_of(statements={"close": "insert into tape (n) values (2) -- daily close"})
    drain = site.drain()
    close = Transaction(attempts=1).statement("close")
    site.submit(write(1, attempts=1), close, write(3, attempts=1))

    step(drain)

    site.whole(3)


def test_an_id_that_the_ledger_has_is_settled_and_its_neighbours_are_applied(site: Site) -> None:
    """Rule 14: the ledger's insert fails on a known id; ON CONFLICT DO NOTHING doubled the rest."""
    drain = site.drain()
    twice = write(1, attempts=1)
    site.submit(twice)
    step(drain)
    known = counted("known")
    site.submit(twice, write(2, attempts=1), twice, write(3, attempts=1))

    step(drain)

    site.whole(3)
    assert known() == 1


def test_the_ledger_has_outcome_and_payload_hash(site: Site) -> None:
    """Rule 15."""
    drain = site.drain()
    good = write(1)
    bad = Transaction().insert("nowhere", {"n": 1})
    site.submit(good, bad)
    step(drain)

    found = outcomes.find(drain.database, [good.id, bad.id])
    assert {i: known.outcome for i, known in found.items()} == {good.id: "applied", bad.id: "dead"}
    hashes = "select count(*) from processor.ledger l join processor.dead_letter d using (id, hash)"
    assert site.one(hashes) == 1
