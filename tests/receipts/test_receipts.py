"""Receipts: how far a write got, by asking and by waiting, here and in other processes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import quote

import pytest
from msgspec.json import encode

import processor
from processor.buffer import commit_notes
from processor.buffer.commit_notes import Entries, Note
from processor.config import loader
from processor.config.settings import Replicas
from processor.connections.wal_position import Position
from processor.receipts import receipt as receipt_module
from processor.receipts import replica_progress, tracker
from processor.receipts.receipt import Receipt
from processor.receipts.replica_progress import ReplicaProgress
from processor.receipts.status import Sought, StatusLookup
from processor.receipts.tracker import everywhere
from processor.receipts.waiters import Waiter, Waiters
from processor.telemetry.status import Replica
from tests.harness.process import Spawn
from tests.harness.servers import Database, Factory
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

BAD = "alter table tape add constraint positive check (n > 0)"


@pytest.fixture
def told(site: Site) -> Iterator[Site]:
    """A site whose settings are those of `import processor`."""
    loader.configure(site.settings)
    yield site
    receipt_module.close()
    loader.configure({})


def test_a_write_is_accepted_then_committed_with_its_position(told: Site) -> None:
    (receipt,) = told.submit(write(1))
    assert receipt.status().state == "accepted"
    told.start()
    reached = receipt.wait(timeout=10)
    assert reached.state == "committed"
    assert reached.position is not None
    current = told.one("select pg_current_wal_lsn() - '0/0'::pg_lsn")
    assert 0 < reached.position.lsn <= current
    assert receipt.status() == reached
    assert receipt.result(timeout=1) == reached


def test_a_wait_that_ends_in_time_out_returns_what_was_reached(told: Site) -> None:
    (receipt,) = told.submit(write(1))
    assert receipt.wait(timeout=0.2).state == "accepted"
    with pytest.raises(processor.WaitTimeout, match="accepted"):
        receipt.result(timeout=0.1)


def test_a_dead_write_is_told_with_its_reason_and_without_its_values(told: Site) -> None:
    told.execute(BAD)
    told.start()
    (receipt,) = told.submit(write(-4711))
    reached = receipt.wait(timeout=10)
    assert (reached.state, "23514" in reached.reason) == ("dead", True)
    assert "4711" not in reached.reason
    with pytest.raises(processor.TransactionDead, match="23514"):
        receipt.result(timeout=1)


def test_neighbours_of_poison_in_one_batch_are_told_apart(told: Site) -> None:
    told.execute(BAD)
    receipts = told.submit(*(write(n) for n in (1, 2, -3, 4)))
    told.start()
    states = [receipt.wait(timeout=10).state for receipt in receipts]
    assert states == ["committed", "committed", "dead", "committed"]


def test_a_retried_write_and_its_follower_tell_attempt_and_next_try(told: Site) -> None:
    told.execute("create table parent (id int primary key)")
    told.execute("create table child (parent int references parent)")
    told.start(told.changed(retry={"delay": 3.0, "max_delay": 3.0}))
    orphan = processor.Transaction(key="k").insert("child", {"parent": 1})
    follower = processor.Transaction(key="k").insert("parent", {"id": 2})
    first, second = told.submit(orphan, follower)
    told.parks(2)
    wait_until(lambda: first.status().state == "retrying")
    reached = first.status()
    assert reached.attempt == 1
    assert reached.next_try is not None
    assert 0 < reached.next_try - time.time() <= 3.5
    assert second.status().state == "parked"
    told.execute("insert into parent values (1)")
    assert [r.wait(timeout=10).state for r in (first, second)] == ["committed", "committed"]


def test_a_status_outlives_its_note_by_way_of_the_ledger(told: Site) -> None:
    told.execute(BAD)
    told.start()
    good, bad = told.submit(write(1), write(-1))
    assert (good.wait(timeout=10).state, bad.wait(timeout=10).state) == ("committed", "dead")
    told.redis.delete(told.lane().commits)
    assert good.status().state == "committed"
    dead = bad.status()
    assert (dead.state, "23514" in dead.reason) == ("dead", True)


def test_a_dead_write_that_an_operator_retries_is_told_as_committed(told: Site) -> None:
    told.execute(BAD)
    told.start()
    (receipt,) = told.submit(write(-1))
    assert receipt.wait(timeout=10).state == "dead"
    told.execute("alter table tape drop constraint positive")
    told.ask(receipt.id, "retry")
    wait_until(lambda: receipt.status().state == "committed")


def test_a_delayed_write_is_scheduled_and_then_committed(told: Site) -> None:
    (receipt,) = told.submit(write(1, delay=0.5))
    assert receipt.entry_id == ""
    assert receipt.status().state == "scheduled"
    told.start()
    assert receipt.wait(timeout=10).state == "committed"


def test_whoever_waits_for_a_delayed_write_hears_of_it(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no entry id to be found by in a note's range; its note names it."""
    monkeypatch.setattr(tracker, "_LOOK", 60.0)
    told.start()
    (receipt,) = told.submit(write(1, delay=0.3))
    began = time.monotonic()
    assert receipt.wait(timeout=20).state == "committed"
    assert time.monotonic() - began < 10, "it was found at the end, not told"


def test_a_known_write_is_told_by_a_note_of_the_look_up(told: Site) -> None:
    """Rule 21: what the ledger knew already gets a note with the position of the look-up."""
    told.start()
    transaction = write(1)
    first, again = told.submit(transaction)[0], None
    assert first.wait(timeout=10).state == "committed"
    (again,) = told.submit(transaction)
    reached = again.wait(timeout=10)
    assert reached.state == "committed"
    assert reached.position is not None


def test_a_thousand_waiters_cost_one_thread_and_one_connection(told: Site) -> None:
    receipts = told.submit(*(write(n) for n in range(1, 1001)))
    reached: list[str] = []
    threads = [
        threading.Thread(target=lambda r=r: reached.append(r.wait(timeout=60).state))
        for r in receipts
    ]
    for thread in threads:
        thread.start()
    watchers = [t for t in threading.enumerate() if t.name == "processor-watcher"]
    assert len(watchers) == 1
    clients = [c["cmd"] for c in told.redis.client_list()]
    assert len(clients) < 20, clients
    told.start()
    for thread in threads:
        thread.join()
    assert reached == ["committed"] * 1000


def test_a_receipt_travels_as_text_to_a_process_that_only_reaches_redis(
    told: Site, spawn: Spawn, database: Database
) -> None:
    told.start()
    (receipt,) = told.submit(write(1))
    program = (
        "import sys, processor\n"
        "processor.configure({'redis': {'url': sys.argv[1]},"
        " 'database': {'dsn': 'host=/nowhere dbname=none'}})\n"
        "print(processor.Receipt.parse(sys.argv[2]).wait(timeout=10).state)\n"
    )
    process = spawn(program, told.settings.redis.url, str(receipt))
    process.expect("committed", 20)


def test_texts_of_receipts_sort_as_their_entries_do() -> None:
    ids = [f"{ms}-{n}" for ms in (5, 50, 1_700_000_000_000) for n in (0, 2, 11)]
    made = [Receipt(processor.new_id(), "default:0", i, processor.new_id()) for i in ids]
    texts = [str(receipt) for receipt in made]
    assert sorted(texts) == texts
    assert [Receipt.parse(text) for text in texts] == made


@pytest.mark.parametrize("text", ["", "x", "~~~", "1-1~no~ids~default%3A0", "a~b~c~d~e", "\0"])
def test_what_is_no_receipt_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(processor.InvalidTransaction, match="receipt: is not the text of a receipt"):
        Receipt.parse(text)


def receipt_of(lane: str = "low:0", entry_id: str = "1-1") -> Receipt:
    return Receipt(processor.new_id(), lane, entry_id, processor.new_id())


def with_lane(lane: str) -> Callable[[str], object]:
    return lambda text: text.removesuffix("low%3A0") + quote(lane, safe="")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + "\n", lambda text: " " + text, lambda text: text[:-1], str.upper,
        str.encode, lambda text: [text], lambda text: text.replace("%3A", ":"),
        lambda text: text.replace("%3A", "%3a"), lambda text: text.replace("low", "l%6Fw"),
        *map(with_lane, ["", "low", "low:", ":0", "low:00", "low:01", "low:12345", "low:x", "a b:0",
                         "low:\u0661", "lo\0w:0", "a:b:0", "low:0\n", "x" * 100_000 + ":0"]),
    ],
)  # fmt: skip
def test_a_damaged_text_is_refused_and_not_asked_for(damage: Callable[[str], str]) -> None:
    """It would be unknown, although the write is safe."""
    text = str(receipt_of())
    assert damage(text) != text
    with pytest.raises(processor.InvalidTransaction, match="receipt: is not the text of a") as no:
        Receipt.parse(damage(text))
    assert len(str(no.value)) < 200


@pytest.mark.parametrize("lane", ["default:0", "low:1023", "a.b-c_D:7", "_" * 63 + ":10"])
@pytest.mark.parametrize("entry_id", ["", "0-1", "1-0", f"1700000000000-{(1 << 64) - 1}"])
def test_the_text_of_any_lane_and_entry_is_a_receipt_again(lane: str, entry_id: str) -> None:
    made = receipt_of(lane, entry_id)
    assert Receipt.parse(str(made)) == made


@pytest.mark.parametrize(
    "order", ["1-1", "1-2-3", f"{1:016}-{1 << 64:020}", f"{1:016}-{1:019}\u0661", f"{1:016}"]
)
def test_an_entry_id_that_redis_would_refuse_is_refused_here(order: str) -> None:
    text = str(Receipt(processor.new_id(), "default:0", "1-1", processor.new_id()))
    with pytest.raises(processor.InvalidTransaction, match="receipt"):
        Receipt.parse(order + text[text.index("~") :])


def test_waiting_for_a_stage_that_does_not_exist_is_refused() -> None:
    receipt = Receipt(processor.new_id(), "default:0", "1-1", processor.new_id())
    with pytest.raises(processor.InvalidTransaction, match="until"):
        receipt.wait(until="done")


@pytest.mark.parametrize("timeout", ["5", float("nan"), float("-inf"), 10**400, Decimal(5), []])
def test_a_time_out_that_is_no_number_of_seconds_is_refused(timeout: Any) -> None:
    """With nan a wait would never end."""
    for wait in (receipt_of().wait, receipt_of().result):
        with pytest.raises(processor.InvalidTransaction, match=r"timeout: .* is no number") as no:
            wait(timeout=timeout)
        assert len(str(no.value)) < 200


@pytest.mark.parametrize("timeout", [None, 10, 10.0, Fraction(10), float("inf")])
def test_any_number_of_seconds_is_waited(told: Site, timeout: Any) -> None:
    (receipt,) = told.submit(write(1))
    told.start()
    assert receipt.wait(timeout=timeout).state == "committed"
    assert receipt.wait(timeout=-1).state == "committed"


def test_a_note_is_found_also_when_the_clock_of_redis_was_set_back(told: Site) -> None:
    """Entry ids and ids of notes are times of Redis, which are only ordered within a stream."""
    receipt = Receipt(processor.new_id(), "default:0", "5000-0", BUFFER)
    command = commit_notes.write(told.lane(), Note(BUFFER, 1.0, POSITION, Entries.of(["5000-0"])))
    told.redis.execute_command(*("1-1" if part == "*" else part for part in command))
    loader.configure(told.changed(database={"dsn": "host=/nowhere dbname=none"}))
    assert receipt.status().state == "committed"


def test_a_dead_letter_that_was_discarded_is_told_as_that(
    site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    site = configured(site_of())
    site.start()
    (receipt,) = site.submit(processor.Transaction().insert("tape", {"n": None}))
    assert receipt.wait(timeout=10).state == "dead"
    site.ask(receipt.id, "discard")
    wait_until(lambda: receipt.status().state == "discarded", message=site.tale)
    assert site.one("select outcome from processor.ledger") == "discarded"


def test_a_write_that_redis_lost_is_not_told_committed(
    own_redis: Factory, site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    """Its neighbours on both sides are committed by one batch, whose range it lies in."""
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


def test_the_dead_are_not_told_committed_by_those_who_are_read_again_around_them(
    own_redis: Factory, site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    """What a full Redis cannot park stays in the stream, and is in one page with newer entries."""
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
    assert commit_notes.read(parts) == note
    return note


Site_lane = commit_notes.Lane("processor", "default:0")


def waiter(transaction_id: str, entry_id: str, buffer_id: str = BUFFER) -> Waiter:
    return Waiter(Sought(transaction_id, Site_lane, entry_id, buffer_id))


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"entries": Entries.of(["1-0", "5-0", "9-0"])}, "committed"),
        ({"entries": Entries.of(["5-0"])}, "committed"),
        ({"entries": Entries.of(["1-0", "9-0"])}, None),
        ({"entries": Entries.of(["5-1", "5-10"])}, None),
        ({"entries": Entries.of(["50-0", "15-0"])}, None),
        ({"also": frozenset({"me"})}, "committed"),
        ({"dead": {"me": ["5-0", "why"]}}, "dead"),
        ({"discarded": {"me": "5-0"}}, "discarded"),
        ({"discarded": {"me": "6-0"}, "entries": Entries.of(["5-0"])}, "committed"),
        ({"dead": {"me": ["6-0", "another payload"]}, "entries": Entries.of(["5-0"])}, "committed"),
    ],
)
def test_a_note_answers_only_for_its_own_entries(fields: dict[str, object], state: str) -> None:
    """Rule 21: what was parked, held or dead in a batch lies between its ids as well."""
    told = _note(**fields).tells("me", "5-0")
    assert (told.state if told else None) == state


@pytest.mark.parametrize("seed", range(20))
def test_entries_are_found_in_a_note_and_no_others(seed: int) -> None:
    chance = random.Random(seed)
    start, spread = 10 ** chance.randint(0, 13), 10 ** chance.randint(0, 4)
    moments = [(start + chance.randrange(spread), chance.choice([0, 0, 0, 1, 10, 100]))
               for _ in range(chance.randint(1, 40))]  # fmt: skip
    ids = [f"{at}-{number}" for at, number in sorted(set(moments))]
    entries = Entries.of(ids)
    assert all(each in entries for each in ids)
    assert entries.span == (ids[0], ids[-1])
    near = {f"{at + step}-{number + more}" for at, number in moments
            for step in (-1, 0, 1) for more in (0, 1, 9)}  # fmt: skip
    assert not [each for each in near - set(ids) if each in entries]
    assert "" not in entries


def test_a_crowd_finds_those_whom_a_note_concerns_and_no_others() -> None:
    crowd = Waiters()
    waiters = [waiter(f"id{n}", f"{n}-0") for n in range(100)]
    delayed = waiter("late", "")
    for each in (*waiters, delayed):
        crowd.add(each)
    heard: Callable[[Note], list[str]] = lambda note: [w.sought.id for w in crowd.concerned(note)]  # noqa: E731
    assert heard(_note(entries=Entries.of(["10-0", "12-0"]))) == ["id10", "id11", "id12"]
    assert heard(_note(also=frozenset({"late"}))) == ["late"]
    assert heard(_note(dead={"id7": ["7-0", "why"]})) == ["id7"]
    for each in (*waiters, delayed):
        crowd.remove(each)
    assert not crowd
    assert heard(_note(entries=Entries.of(["0-0", "99-0"]))) == []


def test_a_note_of_another_buffer_is_not_heard() -> None:
    """Rule 21: after a Redis rollback the same entry ids are other people's."""
    note = _note(entries=Entries.of(["5-0"]))
    assert waiter("me", "5-0").hear(note) is not None
    assert waiter("me", "5-0", OTHER).hear(note) is None


def test_a_note_of_another_buffer_is_not_believed_of_a_write_that_is_lost(told: Site) -> None:
    """Rule 21."""
    (receipt,) = told.submit(write(1))
    stream = told.lane().stream
    (entry_id,) = [entry.decode() for entry, _ in told.redis.xrange(stream)]
    told.redis.delete(stream)
    states = {}
    for buffer in (OTHER, told.redis.get("processor:buffer").decode()):
        note = Note(buffer, time.time(), entries=Entries.of([entry_id]))
        told.redis.execute_command(*commit_notes.write(told.lane(), note))
        states[buffer] = receipt.status().state

    assert [state == "committed" for state in states.values()] == [False, True]


# Waiters until it is replicated.


def told_of(timeline: int, lsn: int, state: str = "following", **lsns: int) -> ReplicaProgress:
    """What is told of two replicas, of which `near` has everything up to `lsn`."""
    at = {"near": lsn, **lsns}
    return ReplicaProgress(
        ("7", timeline),
        {"near": Replica("following", told=time.time()), "far": Replica(state, told=time.time())},
        {name: Position("7", timeline, where) for name, where in at.items()},
    )


def patient(crowd: Waiters) -> Waiter:
    made = Waiter(Sought("me", Site_lane, "5-0", BUFFER), everywhere)
    crowd.add(made)
    return made


def at(timeline: int, lsn: int) -> Note:
    return Note(BUFFER, 1.0, Position("7", timeline, lsn), Entries.of(["1-0", "5-0", "9-0"]))


def test_a_patient_waiter_is_told_when_the_last_replica_has_it_whatever_comes_first() -> None:
    crowd = Waiters()
    me = patient(crowd)
    assert crowd.hear(at(1, 100)) == []
    assert crowd.confirm(told_of(1, 100)) == []
    assert crowd.confirm(told_of(1, 100, far=99)) == []
    ((who, told),) = crowd.confirm(told_of(1, 100, far=100))
    assert (who, told.state, told.replicas) == (me, "replicated", {"near": True, "far": True})
    other = Waiters()
    me = patient(other)
    other.confirm(told_of(1, 200, far=300))
    ((who, told),) = other.hear(at(1, 100))
    assert (who, told.state) == (me, "replicated")


def test_a_lost_replica_is_not_waited_for_and_is_not_said_to_have_it() -> None:
    crowd = Waiters()
    patient(crowd)
    crowd.hear(at(1, 100))
    ((_, told),) = crowd.confirm(told_of(1, 100, "lost"))
    assert (told.state, told.replicas) == ("replicated", {"near": True, "far": False})


def test_a_newer_note_moves_a_waiter_to_the_timeline_on_which_it_was_applied_again() -> None:
    """Rule 22: no position of the old timeline says anything about the new one."""
    crowd = Waiters()
    me = patient(crowd)
    crowd.hear(at(1, 900))
    crowd.confirm(told_of(1, 100, far=100))
    assert crowd.confirm(told_of(2, 999, far=999)) == []
    begun = time.monotonic()
    assert me.wait(5) is None
    assert time.monotonic() - begun < 1, "it had better ask what has become of it"
    assert crowd.hear(at(2, 1000)) == []
    ((_, told),) = crowd.confirm(told_of(2, 1000, far=1000))
    assert told.position == Position("7", 2, 1000)


def test_what_was_looked_up_before_a_note_was_heard_does_not_move_a_waiter_back() -> None:
    crowd = Waiters()
    me = patient(crowd)
    crowd.hear(at(1, 100))
    looked_up = StatusLookup("committed", Position("7", 1, 5000))
    assert crowd.commit(me, looked_up) is None
    assert crowd.confirm(told_of(1, 100, far=100))


def test_who_has_left_hears_no_more() -> None:
    crowd = Waiters()
    me = patient(crowd)
    crowd.hear(at(1, 100))
    crowd.remove(me)
    assert not crowd
    assert crowd.patient == 0
    assert crowd.confirm(told_of(1, 100, far=100)) == []


@pytest.mark.parametrize(
    ("primary", "behind"),
    [(("7", 1), False), (("7", 2), True), (("8", 1), True), (("7", 0), False), (None, False)],
)
def test_a_commit_of_an_older_timeline_or_another_server_is_left_behind(
    primary: tuple[str, int] | None, behind: bool
) -> None:
    assert ReplicaProgress(primary, {}, {}).left_behind(POSITION) is behind


def test_a_replica_that_is_told_of_no_more_does_not_count_unless_it_is_named() -> None:
    now = time.time()
    told = {"here": Replica("following", told=now), "gone": Replica("following", told=now - 301)}
    pairs = [part for name, one in told.items() for part in (name.encode(), encode(one))]
    replies = [b"7/1", pairs, [], []]
    (found,) = replica_progress.told(Replicas(), replies)
    assert list(found.replicas) == ["here"]
    (found,) = replica_progress.told(Replicas(servers={"gone": "", "new": ""}), replies)
    assert list(found.replicas) == ["gone", "new"]
    assert found.watched(now) == set()
