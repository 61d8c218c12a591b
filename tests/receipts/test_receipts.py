"""Receipts: how far a write got, by asking and by waiting, here and in other processes."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import quote, unquote

import pytest
from msgspec.json import encode

import processor
from processor.buffer import commit_notes
from processor.buffer.commit_notes import EntryIds, Note
from processor.config import loader
from processor.config.settings import Replicas
from processor.connections.wal_position import Position
from processor.receipts import replica_progress, tracker
from processor.receipts.receipt import Receipt
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import StatusLookup, Target
from processor.receipts.tracker import everywhere
from processor.receipts.waiters import Waiter, Waiters
from processor.telemetry.status import Replica
from tests.harness.process import Spawn
from tests.harness.servers import Database, Factory
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

BAD = "alter table tape add constraint positive check (n > 0)"


@pytest.fixture
def live(site: Site) -> Iterator[Site]:
    """A site whose settings are those of `import processor`."""
    loader.configure(site.settings)
    yield site
    tracker.close()
    loader.configure({})


def test_a_write_is_accepted_then_committed_with_its_position(live: Site) -> None:
    (receipt,) = live.submit(write(1))
    assert receipt.status().state == "accepted"
    live.start()
    reached = receipt.wait(timeout=10)
    assert reached.state == "committed"
    assert reached.position is not None
    current = live.one("select pg_current_wal_lsn() - '0/0'::pg_lsn")
    assert 0 < reached.position.lsn <= current
    assert receipt.status() == reached
    assert receipt.result(timeout=1) == reached


def test_a_wait_that_ends_in_time_out_returns_what_was_reached(live: Site) -> None:
    (receipt,) = live.submit(write(1))
    assert receipt.wait(timeout=0.2).state == "accepted"
    with pytest.raises(processor.WaitTimeout, match="accepted"):
        receipt.result(timeout=0.1)


def test_a_dead_write_has_its_reason_without_its_values(live: Site) -> None:
    live.execute(BAD)
    live.start()
    (receipt,) = live.submit(write(-4711))
    reached = receipt.wait(timeout=10)
    assert (reached.state, "23514" in reached.reason) == ("dead", True)
    assert "4711" not in reached.reason
    with pytest.raises(processor.TransactionDead, match="23514"):
        receipt.result(timeout=1)


def test_neighbours_of_poison_in_one_batch_are_committed(live: Site) -> None:
    live.execute(BAD)
    receipts = live.submit(*(write(n) for n in (1, 2, -3, 4)))
    live.start()
    states = [receipt.wait(timeout=10).state for receipt in receipts]
    assert states == ["committed", "committed", "dead", "committed"]


def test_a_retried_write_has_its_next_try_and_its_follower_is_parked(live: Site) -> None:
    live.execute("create table parent (id int primary key)")
    live.execute("create table child (parent int references parent)")
    live.start(live.changed(retry={"delay": 3.0, "max_delay": 3.0}))
    orphan = processor.Transaction(key="k").insert("child", {"parent": 1})
    follower = processor.Transaction(key="k").insert("parent", {"id": 2})
    first, second = live.submit(orphan, follower)
    live.parks(2)
    wait_until(lambda: first.status().state == "retrying")
    reached = first.status()
    assert reached.attempt == 1
    assert reached.next_try is not None
    assert 0 < reached.next_try - time.time() <= 3.5
    assert second.status().state == "parked"
    live.execute("insert into parent values (1)")
    assert [r.wait(timeout=10).state for r in (first, second)] == ["committed", "committed"]


def test_without_its_note_a_status_comes_from_the_ledger(live: Site) -> None:
    live.execute(BAD)
    live.start()
    good, bad = live.submit(write(1), write(-1))
    assert (good.wait(timeout=10).state, bad.wait(timeout=10).state) == ("committed", "dead")
    live.redis.delete(live.lane().commits)
    assert good.status().state == "committed"
    dead = bad.status()
    assert (dead.state, "23514" in dead.reason) == ("dead", True)


def test_a_dead_write_that_an_operator_retries_is_committed(live: Site) -> None:
    live.execute(BAD)
    live.start()
    (receipt,) = live.submit(write(-1))
    assert receipt.wait(timeout=10).state == "dead"
    live.execute("alter table tape drop constraint positive")
    live.ask(receipt.id, "retry")
    wait_until(lambda: receipt.status().state == "committed")


def test_a_delayed_write_is_scheduled_and_then_committed(live: Site) -> None:
    (receipt,) = live.submit(write(1, delay=0.5))
    assert receipt.entry_id == ""
    assert receipt.status().state == "scheduled"
    live.start()
    assert receipt.wait(timeout=10).state == "committed"


def test_a_note_ends_the_wait_for_a_delayed_write(
    live: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt has no entry id that could lie in a note's range; the note names the id."""
    monkeypatch.setattr(tracker, "_QUERY_AFTER", 60.0)
    live.start()
    (receipt,) = live.submit(write(1, delay=0.3))
    began = time.monotonic()
    assert receipt.wait(timeout=20).state == "committed"
    assert time.monotonic() - began < 10, "it was found by querying, not by its note"


def test_a_write_that_was_already_applied_gets_a_note_of_the_look_up(live: Site) -> None:
    """Rule 21: the note has the position of the look-up."""
    live.start()
    transaction = write(1)
    first, again = live.submit(transaction)[0], None
    assert first.wait(timeout=10).state == "committed"
    (again,) = live.submit(transaction)
    reached = again.wait(timeout=10)
    assert reached.state == "committed"
    assert reached.position is not None


def test_a_thousand_waiters_cost_one_thread_and_one_connection(live: Site) -> None:
    receipts = live.submit(*(write(n) for n in range(1, 1001)))
    reached: list[str] = []
    threads = [
        threading.Thread(target=lambda r=r: reached.append(r.wait(timeout=60).state))
        for r in receipts
    ]
    for thread in threads:
        thread.start()
    watchers = [t for t in threading.enumerate() if t.name == "processor-watcher"]
    assert len(watchers) == 1
    clients = [c["cmd"] for c in live.redis.client_list()]
    assert len(clients) < 20, clients
    live.start()
    for thread in threads:
        thread.join()
    assert reached == ["committed"] * 1000


def test_a_receipt_travels_as_text_to_a_process_that_only_reaches_redis(
    live: Site, spawn: Spawn, database: Database
) -> None:
    live.start()
    (receipt,) = live.submit(write(1))
    program = (
        "import sys, processor\n"
        "processor.configure({'redis': {'url': sys.argv[1]},"
        " 'database': {'dsn': 'host=/nowhere dbname=none'}})\n"
        "print(processor.Receipt.parse(sys.argv[2]).wait(timeout=10).state)\n"
    )
    process = spawn(program, live.settings.redis.url, str(receipt))
    process.expect("committed", 20)


def test_texts_of_receipts_sort_as_their_entries_do() -> None:
    ids = [f"{ms}-{n}" for ms in (5, 50, 1_700_000_000_000) for n in (0, 2, 11)]
    made = [Receipt(processor.new_id(), "default:0", i, processor.new_id()) for i in ids]
    texts = [str(receipt) for receipt in made]
    assert sorted(texts) == texts
    assert [Receipt.parse(text) for text in texts] == made


@pytest.mark.parametrize("text", ["", "x", "~~~", "1-1~no~ids~default%3A0", "a~b~c~d~e", "\0"])
def test_a_text_that_is_not_a_receipt_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(processor.InvalidTransaction, match="receipt: is not the text of a receipt"):
        Receipt.parse(text)


def receipt_of(lane: str = "low:0", entry_id: str = "1-1") -> Receipt:
    return Receipt(processor.new_id(), lane, entry_id, processor.new_id())


def with_lane(lane: str) -> Callable[[str], object]:
    return lambda text: text.removesuffix("low~0") + quote(lane, safe="")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + "\n", lambda text: " " + text, lambda text: text[:-1], str.upper,
        str.encode, lambda text: [text], lambda text: text.replace("low~0", "low:0"),
        lambda text: text.replace("low~0", "low%3a0"), lambda text: text.replace("low", "l%6Fw"),
        lambda text: text.replace("low~0", "l%6Fw%3A0"), lambda text: text + "~0",
        *map(with_lane, ["", "low", "low:", ":0", "low:00", "low:01", "low:12345", "low:x", "a b:0",
                         "low:\u0661", "lo\0w:0", "a:b:0", "low:0\n", "x" * 100_000 + ":0"]),
    ],
)  # fmt: skip
def test_a_damaged_text_is_refused_and_not_looked_up(damage: Callable[[str], str]) -> None:
    """A look-up would report it as unknown, although the write is safe."""
    text = str(receipt_of())
    assert damage(text) != text
    with pytest.raises(processor.InvalidTransaction, match="receipt: is not the text of a") as no:
        Receipt.parse(damage(text))
    assert len(str(no.value)) < 200


def test_the_text_stands_in_the_path_of_a_url_and_comes_back_unchanged() -> None:
    made = receipt_of("a.b-c_D:7")
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", str(made))
    assert Receipt.parse(unquote(quote(str(made), safe=""))) == made


def test_a_text_of_release_0_1_is_still_a_receipt() -> None:
    text = (
        "0001700000000000-00000000000000000003~01a20104000070008000000000000001"
        "~01a20104000070008000000000000002~low%3A0"
    )
    assert Receipt.parse(text) == Receipt(
        "01a20104-0000-7000-8000-000000000001", "low:0", "1700000000000-3",
        "01a20104-0000-7000-8000-000000000002",
    )  # fmt: skip


@pytest.mark.parametrize("lane", ["default:0", "low:1023", "a.b-c_D:7", "_" * 63 + ":10"])
@pytest.mark.parametrize("entry_id", ["", "0-1", "1-0", f"1700000000000-{(1 << 64) - 1}"])
def test_the_text_of_any_receipt_parses_to_the_same_receipt(lane: str, entry_id: str) -> None:
    made = receipt_of(lane, entry_id)
    assert Receipt.parse(str(made)) == made


@pytest.mark.parametrize(
    "order", ["1-1", "1-2-3", f"{1:016}-{1 << 64:020}", f"{1:016}-{1:019}\u0661", f"{1:016}"]
)
def test_an_entry_id_that_redis_would_refuse_is_refused(order: str) -> None:
    text = str(Receipt(processor.new_id(), "default:0", "1-1", processor.new_id()))
    with pytest.raises(processor.InvalidTransaction, match="receipt"):
        Receipt.parse(order + text[text.index("~") :])


def test_waiting_for_a_stage_that_does_not_exist_is_refused() -> None:
    receipt = Receipt(processor.new_id(), "default:0", "1-1", processor.new_id())
    with pytest.raises(processor.InvalidTransaction, match="until"):
        receipt.wait(until="done")


@pytest.mark.parametrize("timeout", ["5", float("nan"), float("-inf"), 10**400, Decimal(5), []])
def test_a_timeout_must_be_a_number_of_seconds(timeout: Any) -> None:
    """A wait of nan seconds would never end."""
    for wait in (receipt_of().wait, receipt_of().result):
        with pytest.raises(processor.InvalidTransaction, match=r"timeout: must be a number") as no:
            wait(timeout=timeout)
        assert len(str(no.value)) < 200


@pytest.mark.parametrize("timeout", [None, 10, 10.0, Fraction(10), float("inf")])
def test_a_timeout_may_be_any_number_of_seconds(live: Site, timeout: Any) -> None:
    (receipt,) = live.submit(write(1))
    live.start()
    assert receipt.wait(timeout=timeout).state == "committed"
    assert receipt.wait(timeout=-1).state == "committed"


def test_a_note_is_found_although_the_clock_of_redis_was_set_back(live: Site) -> None:
    """Ids of entries and notes are times of Redis, which are ordered only within a stream."""
    receipt = Receipt(processor.new_id(), "default:0", "5000-0", BUFFER)
    command = commit_notes.write(live.lane(), Note(BUFFER, 1.0, POSITION, EntryIds.of(["5000-0"])))
    live.redis.execute_command(*("1-1" if part == "*" else part for part in command))
    loader.configure(live.changed(database={"dsn": "host=/nowhere dbname=none"}))
    assert receipt.status().state == "committed"


def test_a_dead_letter_that_was_discarded_has_the_state_discarded(
    site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    site = configured(site_of())
    site.start()
    (receipt,) = site.submit(processor.Transaction().insert("tape", {"n": None}))
    assert receipt.wait(timeout=10).state == "dead"
    site.ask(receipt.id, "discard")
    wait_until(lambda: receipt.status().state == "discarded", message=site.tale)
    assert site.one("select outcome from processor.ledger") == "discarded"


def test_a_write_that_redis_lost_is_not_reported_as_committed(
    own_redis: Factory, site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    """Its neighbours on both sides are committed in one batch, whose range it lies in."""
    redis = own_redis()
    site = configured(site_of(redis))
    site.submit(write(1))
    site.redis.save()
    (lost,) = site.submit(write(2))
    redis.kill()
    redis.start()
    (last,) = site.submit(write(3))
    site.start()
    assert last.wait(timeout=10).state == "committed"
    assert site.tape() == [1, 3]
    assert lost.status().state == "unknown"


def test_a_dead_write_stays_dead_when_its_neighbours_are_read_again_and_committed(
    own_redis: Factory, site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    """An entry that a full Redis cannot park stays in the stream, in a page with newer entries."""
    site = configured(site_of(own_redis(), retry={"attempts": 5, "delay": 60, "max_delay": 60}))
    site.execute("create table parent (id int primary key)")
    site.execute("create table child (id int primary key references parent, n int not null)")
    waits = processor.Transaction(key="k").insert("child", {"id": 1, "n": 1})
    dies = processor.Transaction().insert("child", {"id": 2, "n": None})
    _, dead, one = site.submit(waits, dies, write(1))
    site.redis.config_set("maxmemory", 1)
    site.start()
    site.commits(1)
    wait_until(lambda: site.depth() == 1, message=site.tale)
    assert dead.wait(timeout=10).state == "dead"
    site.redis.config_set("maxmemory", 0)
    (two,) = site.submit(write(2))
    assert two.wait(timeout=10).state == "committed"
    wait_until(lambda: site.parked() == 1, message=site.tale)
    assert [each.status().state for each in (dead, one, two)] == ["dead", *["committed"] * 2]


POSITION = Position("7", 1, 100)
BUFFER, OTHER = processor.new_id(), processor.new_id()


def _note(**fields: object) -> Note:
    note = Note(BUFFER, 1.0, POSITION, **fields)  # type: ignore[arg-type]
    command = commit_notes.write(Site_lane, note)
    parts = [str(p).encode() if not isinstance(p, bytes) else p for p in command[6:]]
    assert commit_notes.parse(parts) == note
    return note


Site_lane = commit_notes.Lane("processor", "default:0")


def waiter(transaction_id: str, entry_id: str, buffer_id: str = BUFFER) -> Waiter:
    return Waiter(Target(transaction_id, Site_lane, entry_id, buffer_id))


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"entries": EntryIds.of(["1-0", "5-0", "9-0"])}, "committed"),
        ({"entries": EntryIds.of(["5-0"])}, "committed"),
        ({"entries": EntryIds.of(["1-0", "9-0"])}, None),
        ({"entries": EntryIds.of(["5-1", "5-10"])}, None),
        ({"entries": EntryIds.of(["50-0", "15-0"])}, None),
        ({"also": frozenset({"me"})}, "committed"),
        ({"dead": {"me": ["5-0", "why"]}}, "dead"),
        ({"discarded": {"me": "5-0"}}, "discarded"),
        ({"discarded": {"me": "6-0"}, "entries": EntryIds.of(["5-0"])}, "committed"),
        (
            {"dead": {"me": ["6-0", "another payload"]}, "entries": EntryIds.of(["5-0"])},
            "committed",
        ),
    ],
)
def test_a_note_answers_only_for_its_own_entries(fields: dict[str, object], state: str) -> None:
    """Rule 21: an entry that was parked or dead lies between the ids of its batch as well."""
    told = _note(**fields).outcome_of("me", "5-0")
    assert (told.state if told else None) == state


@pytest.mark.parametrize("seed", range(20))
def test_entries_are_found_in_a_note_and_no_others(seed: int) -> None:
    chance = random.Random(seed)
    start, spread = 10 ** chance.randint(0, 13), 10 ** chance.randint(0, 4)
    moments = [(start + chance.randrange(spread), chance.choice([0, 0, 0, 1, 10, 100]))
               for _ in range(chance.randint(1, 40))]  # fmt: skip
    ids = [f"{at}-{number}" for at, number in sorted(set(moments))]
    entries = EntryIds.of(ids)
    assert all(each in entries for each in ids)
    assert entries.span == (ids[0], ids[-1])
    near = {f"{at + step}-{number + more}" for at, number in moments
            for step in (-1, 0, 1) for more in (0, 1, 9)}  # fmt: skip
    assert not [each for each in near - set(ids) if each in entries]
    assert "" not in entries


def test_a_note_finds_the_waiters_that_it_concerns_and_no_others() -> None:
    lane_waiters = Waiters()
    waiters = [waiter(f"id{n}", f"{n}-0") for n in range(100)]
    delayed = waiter("late", "")
    for each in (*waiters, delayed):
        lane_waiters.add(each)

    def concerned(note: Note) -> list[str]:
        return [each.target.id for each in lane_waiters.concerned(note)]

    assert concerned(_note(entries=EntryIds.of(["10-0", "12-0"]))) == ["id10", "id11", "id12"]
    assert concerned(_note(also=frozenset({"late"}))) == ["late"]
    assert concerned(_note(dead={"id7": ["7-0", "why"]})) == ["id7"]
    for each in (*waiters, delayed):
        lane_waiters.remove(each)
    assert not lane_waiters
    assert concerned(_note(entries=EntryIds.of(["0-0", "99-0"]))) == []


def test_a_note_of_another_buffer_says_nothing_about_an_entry() -> None:
    """Rule 21: after a rollback of Redis the same entry ids belong to other transactions."""
    note = _note(entries=EntryIds.of(["5-0"]))
    assert waiter("me", "5-0").read(note) is not None
    assert waiter("me", "5-0", OTHER).read(note) is None


def test_a_write_that_redis_lost_is_not_committed_by_a_note_of_another_buffer(live: Site) -> None:
    """Rule 21."""
    (receipt,) = live.submit(write(1))
    stream = live.lane().stream
    (entry_id,) = [entry.decode() for entry, _ in live.redis.xrange(stream)]
    live.redis.delete(stream)
    states = {}
    for buffer in (OTHER, live.redis.get("processor:buffer").decode()):
        note = Note(buffer, time.time(), entries=EntryIds.of([entry_id]))
        live.redis.execute_command(*commit_notes.write(live.lane(), note))
        states[buffer] = receipt.status().state

    assert [state == "committed" for state in states.values()] == [False, True]


# Waiters for replicas.


def progress_of(timeline: int, lsn: int, state: str = "following", **lsns: int) -> ReplicaProgress:
    """The progress of two replicas, of which `near` has everything up to `lsn`."""
    at = {"near": lsn, **lsns}
    return ReplicaProgress(
        ("7", timeline),
        {"near": Replica("following", told=time.time()), "far": Replica(state, told=time.time())},
        {name: Position("7", timeline, where) for name, where in at.items()},
    )


def replica_waiter(lane_waiters: Waiters) -> Waiter:
    made = Waiter(Target("me", Site_lane, "5-0", BUFFER), everywhere)
    lane_waiters.add(made)
    return made


def at(timeline: int, lsn: int) -> Note:
    return Note(BUFFER, 1.0, Position("7", timeline, lsn), EntryIds.of(["1-0", "5-0", "9-0"]))


def test_a_wait_ends_when_the_last_replica_has_the_commit_whatever_comes_first() -> None:
    lane_waiters = Waiters()
    me = replica_waiter(lane_waiters)
    assert lane_waiters.read(at(1, 100)) == []
    assert lane_waiters.record_progress(progress_of(1, 100)) == []
    assert lane_waiters.record_progress(progress_of(1, 100, far=99)) == []
    ((who, result),) = lane_waiters.record_progress(progress_of(1, 100, far=100))
    assert (who, result.state, result.replicas) == (me, "replicated", {"near": True, "far": True})
    other = Waiters()
    me = replica_waiter(other)
    other.record_progress(progress_of(1, 200, far=300))
    ((who, result),) = other.read(at(1, 100))
    assert (who, result.state) == (me, "replicated")


def test_a_lost_replica_is_not_waited_for_and_does_not_count_as_having_the_commit() -> None:
    lane_waiters = Waiters()
    replica_waiter(lane_waiters)
    lane_waiters.read(at(1, 100))
    ((_, result),) = lane_waiters.record_progress(progress_of(1, 100, "lost"))
    assert (result.state, result.replicas) == ("replicated", {"near": True, "far": False})


def test_a_newer_note_moves_a_waiter_to_the_timeline_of_the_second_commit() -> None:
    """Rule 22: positions of the old timeline say nothing about the new one."""
    lane_waiters = Waiters()
    me = replica_waiter(lane_waiters)
    lane_waiters.read(at(1, 900))
    lane_waiters.record_progress(progress_of(1, 100, far=100))
    assert lane_waiters.record_progress(progress_of(2, 999, far=999)) == []
    begun = time.monotonic()
    assert me.wait(5) is None
    assert time.monotonic() - begun < 1, "the waiter was not woken to query the status"
    assert lane_waiters.read(at(2, 1000)) == []
    ((_, result),) = lane_waiters.record_progress(progress_of(2, 1000, far=1000))
    assert result.position == Position("7", 2, 1000)


def test_an_older_look_up_does_not_replace_the_position_of_a_note() -> None:
    lane_waiters = Waiters()
    me = replica_waiter(lane_waiters)
    lane_waiters.read(at(1, 100))
    looked_up = StatusLookup("committed", Position("7", 1, 5000))
    assert lane_waiters.record_commit(me, looked_up) is None
    assert lane_waiters.record_progress(progress_of(1, 100, far=100))


def test_a_waiter_that_left_gets_no_result() -> None:
    lane_waiters = Waiters()
    me = replica_waiter(lane_waiters)
    lane_waiters.read(at(1, 100))
    lane_waiters.remove(me)
    assert not lane_waiters
    assert lane_waiters.for_replicas == 0
    assert lane_waiters.record_progress(progress_of(1, 100, far=100)) == []


@pytest.mark.parametrize(
    ("primary", "behind"),
    [(("7", 1), False), (("7", 2), True), (("8", 1), True), (("7", 0), False), (None, False)],
)
def test_a_commit_of_an_older_timeline_or_another_cluster_predates_a_failover(
    primary: tuple[str, int] | None, behind: bool
) -> None:
    assert ReplicaProgress(primary, {}, {}).predates_failover(POSITION) is behind


def test_a_replica_without_recent_reports_counts_only_if_it_is_configured() -> None:
    now = time.time()
    here, gone = (Replica("following", told=at) for at in (now, now - 301))
    reported = {"here": here, "gone": gone}
    pairs = [part for name, one in reported.items() for part in (name.encode(), encode(one))]
    replies = [b"7/1", pairs, [], []]
    (found,) = replica_progress.parse(Replicas(), replies)
    assert list(found.replicas) == ["here"]
    (found,) = replica_progress.parse(Replicas(servers={"gone": "", "new": ""}), replies)
    assert list(found.replicas) == ["gone", "new"]
    assert found.watched(now) == set()


# What it costs.


def test_importing_a_receipt_loads_neither_ledger_nor_postgresql() -> None:
    """A producer that never asks how far a write got does not pay for the answer."""
    program = (
        "import sys, processor.receipts.receipt\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] == 'processor'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert len(loaded) <= 26, loaded
    assert not {"processor.ledger", "processor.connections.postgres_connection"} & set(loaded)
