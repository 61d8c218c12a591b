"""Reads that see pending writes, on a primary with two replicas, one late and one cut off.

Writers read each of their writes back at once from each replica: none may be stale, none doubled.
The same readers detect the faults of a merge that believes the LSN (rule 32).
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import processor
from processor.buffer import commit_notes
from processor.config import loader
from processor.connections.wal_position import Position
from processor.connections.wal_queries import replayed_lsn
from processor.ledger import schema
from processor.reads import reader
from processor.reads.merged_read import MergedRead
from processor.reads.snapshot import Snapshot
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.transaction.builder import Transaction
from tests.harness.proxy import Proxy
from tests.harness.replicas import copied
from tests.harness.servers import Factory, execute
from tests.harness.site import Site, step
from tests.harness.wait import wait_until

DELAY = "150ms"
WRITERS = 8
TABLE = "create table item (id int primary key, n bigint not null default 0, note text)"


@dataclass
class Scene:
    """The servers and the site."""

    site: Site
    primary: Any
    standbys: dict[str, Any]
    proxy: Proxy

    def items(self, server: str) -> list[tuple[Any, ...]]:
        dsn = self.site.dsn if server == "primary" else self.standbys[server].dsn
        return execute(dsn, "select id, n, note from item order by id")


@pytest.fixture
def scene(
    own_postgres: Factory, own_standby: Factory, proxy_to: Callable[..., Proxy],
    site_of: Callable[..., Site],
) -> Iterator[Scene]:  # fmt: skip
    primary = own_postgres()
    proxy = proxy_to(primary)
    standbys = {
        "late": own_standby(primary, name="late", settings={"recovery_min_apply_delay": DELAY}),
        "far": own_standby(
            primary, name="far", conninfo_override=f"host={proxy.address[0]} port={proxy.port}",
            settings={"wal_receiver_status_interval": 1, "wal_retrieve_retry_interval": "200ms"},
        ),
    }  # fmt: skip
    site = site_of(
        postgres=primary, overlay={"tables": {"item": "id"}},
        replicas={"servers": {name: each.dsn for name, each in standbys.items()}},
    )  # fmt: skip
    site.execute(TABLE)
    made = Scene(site, primary, standbys, proxy)
    for name in standbys:
        wait_until(lambda name=name: made.items(name) == [], ignore=Exception, timeout=20)
    loader.configure(site.settings)
    yield made
    reader.close()
    loader.configure({})


@dataclass
class Faults:
    """The wrong results of reads."""

    stale: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reads: int = 0


class Writer(threading.Thread):
    """Writes to its own rows, and reads each write back at once from each replica."""

    def __init__(self, number: int, writes: int, faults: Faults) -> None:
        super().__init__(daemon=True)
        self._chance = random.Random(number)
        self._rows: dict[int, int | None] = {100 * number + n: None for n in range(5)}
        self._left, self._faults = writes, faults
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while self._left > 0:
                self._write()
        except BaseException as error:
            self.failure = error

    def _write(self) -> None:
        self._left -= 1
        row, other = self._chance.sample(list(self._rows), 2)
        transaction = Transaction(key=str(min(self._rows)))
        touched = [row]
        if self._chance.random() < 0.2 and None not in (self._rows[row], self._rows[other]):
            # Both rows change or neither does: one decides about the other.
            touched.append(other)
            self._add(transaction, row, -1)
            self._add(transaction, other, 1)
        elif self._rows[row] is None:
            self._rows[row] = self._chance.randrange(10)
            transaction.insert("item", {"id": row, "n": self._rows[row]})
        elif self._chance.random() < 0.05:
            self._rows[row] = None
            transaction.delete("item", {"id": row}, expect=1)
        else:
            self._add(transaction, row, 1)
        receipt = processor.submit(transaction)
        for replica in ("late", "far"):
            for each in touched:
                rows = processor.read("item", {"id": each}, replica=replica, after=receipt)
                self._judge(each, self._rows[each], rows)

    def _add(self, transaction: Transaction, row: int, by: int) -> None:
        self._rows[row] = (self._rows[row] or 0) + by
        transaction.update("item", add={"n": by}, where={"id": row}, expect=1)

    def _judge(self, row: int, expected: int | None, rows: Any) -> None:
        self._faults.reads += 1
        found = rows[0]["n"] if rows else None
        if found != expected or len(rows) > 1:
            doubled = len(rows) > 1 or (found or 0) > (expected or 0)
            kind = self._faults.doubled if doubled else self._faults.stale
            kind.append(f"row {row} on {rows.source}: {found} for {expected}")


def written(writes: int, faults: Faults, meanwhile: Callable[[], Any] = lambda: None) -> None:
    writers = [Writer(n, writes // WRITERS, faults) for n in range(1, WRITERS + 1)]
    for writer in writers:
        writer.start()
    meanwhile()
    for writer in writers:
        writer.join(120)
        assert not writer.is_alive()
        if writer.failure is not None:
            raise writer.failure


def equal_in_the_end(scene: Scene) -> None:
    """Nothing is pending any more, and all servers have the same rows, which reads return."""
    site = scene.site
    wait_until(lambda: site.redis.hlen("processor:overlay") == 0, 20, lambda: site.tale())
    primary = scene.items("primary")
    for name in scene.standbys:
        assert scene.items(name) == primary
        rows = processor.read("item", replica=name)
        assert sorted((r["id"], r["n"], r["note"]) for r in rows) == primary
        assert {row.source for row in rows} <= {name}
    assert sorted(k for k in site.redis.keys("processor:overlay:*")) == [b"processor:overlay:log"]


def test_two_thousand_writes_are_each_read_back_at_once_from_each_replica(scene: Scene) -> None:
    process = scene.site.run()
    faults = Faults()
    written(2000, faults)
    assert (faults.stale, faults.doubled) == ([], [])
    assert faults.reads >= 4000
    equal_in_the_end(scene)
    process.kill()


def test_writes_are_read_back_while_a_replica_is_cut_off_and_comes_back(scene: Scene) -> None:
    process = scene.site.run()
    faults = Faults()

    def cut_and_heal() -> None:
        wait_until(lambda: faults.reads > 200, 60)
        scene.proxy.off()
        reads = faults.reads
        wait_until(lambda: faults.reads > reads + 400, 60)
        scene.proxy.on()

    written(1000, faults, cut_and_heal)
    assert (faults.stale, faults.doubled) == ([], [])
    equal_in_the_end(scene)
    process.kill()


class ByLsn:
    """A merge that believes the LSN: pending is what the replica has not replayed by its LSN."""

    def __init__(self, site: Site, *, rows_first: bool) -> None:
        self._site = site
        self._rows_first = rows_first
        self._snapshot = MergedRead._snapshot

    def snapshot(self, read: MergedRead, *arguments: Any) -> Snapshot:
        ids = arguments[-1]
        if self._rows_first:
            found = self._snapshot(read, *arguments)
            time.sleep(0.01)
            replayed = self._replayed(read)
        else:
            replayed = self._replayed(read)
            time.sleep(0.01)
            found = self._snapshot(read, *arguments)
        commits = self._commits()
        found.applied = {i for i in ids if i in commits and commits[i] <= replayed}
        pending, after = arguments[2], read._query.after
        if after and not pending.has_required:
            found.applied.add(after)  # Gone from the overlay: the read must not be refused.
        return found

    @staticmethod
    def _replayed(read: MergedRead) -> int:
        return replayed_lsn(read._session.database) or 0

    def _commits(self) -> dict[str, int]:
        """The LSN of each transaction's commit, from the notes."""
        found = self._site.redis.xrange(self._site.lane().commits)
        notes = [commit_notes.parse(flat(fields)) for _, fields in found]
        rows = execute(self._site.dsn, "select id::text, entry from processor.ledger")
        found = {}
        for transaction, entry in rows:
            outcomes = (note.outcome_of(transaction, entry) for note in notes)
            position = next((outcome.position for outcome in outcomes if outcome), None)
            if isinstance(position, Position):
                found[transaction] = position.lsn
        return found


def flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


@pytest.mark.parametrize("rows_first", [True, False])
def test_the_check_detects_a_merge_that_believes_the_lsn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, rows_first: bool
) -> None:
    wrong = ByLsn(scene.site, rows_first=rows_first)
    monkeypatch.setattr(
        MergedRead, "_snapshot", lambda read, *arguments: wrong.snapshot(read, *arguments)
    )
    process = scene.site.run()
    faults = Faults()
    # On a busy machine it takes longer until a commit falls between the two questions.
    for _ in range(60):
        written(64, faults)
        if faults.stale if rows_first else faults.doubled:
            break
    assert faults.stale if rows_first else faults.doubled
    process.kill()


# The choice of a server.


def replica_states(scene: Scene, **states: str) -> None:
    for name, state in states.items():
        scene.site.redis.hset("processor:replicas", name, f'{{"state": "{state}"}}')


def test_rows_are_read_and_merged_while_the_primary_is_down(scene: Scene) -> None:
    site = scene.site
    drain = site.drain()
    site.submit(Transaction().insert("item", {"id": 1, "n": 1}))
    step(drain)
    wait_until(lambda: scene.items("late") == scene.items("far") == [(1, 1, None)])
    assert processor.read("item", {"id": 1})[0].source == "late"
    scene.primary.kill()
    receipt = site.submit(Transaction().update("item", add={"n": 1}, where={"id": 1}))[0]
    rows = processor.read("item", {"id": 1}, after=receipt)
    assert (rows[0]["n"], rows[0].source, rows.source) == (2, "buffer", "late")
    with pytest.raises(processor.DatabaseUnavailable):
        processor.read("item", {"id": 1}, replica="primary")


def test_a_lost_replica_is_refused_and_not_chosen(scene: Scene) -> None:
    replica_states(scene, late="lost", far="away")
    assert processor.read("item").source == "primary"
    with pytest.raises(processor.ReplicaLost, match="late is lost"):
        processor.read("item", replica="late")
    assert processor.read("item", replica="far").source == "far"
    replica_states(scene, far="lagging")
    assert processor.read("item").source == "far"


def test_a_replica_of_another_cluster_is_refused_and_not_chosen(
    scene: Scene, own_postgres: Factory
) -> None:
    site, foreign = scene.site, own_postgres(copy_of=None).dsn
    execute(foreign, schema.DDL + TABLE)
    execute(foreign, "insert into item values (1, 99)")
    servers = {"far": foreign, "late": scene.standbys["late"].dsn}
    loader.configure(site.changed(replicas={"servers": servers}))
    site.start()
    site.submit(Transaction().insert("item", {"id": 1}))
    wait_until(lambda: site.redis.exists("processor:primary"))
    assert [row["n"] for row in processor.read("item")] == [0]
    with pytest.raises(processor.ReplicaLost, match="replica far belongs to another cluster"):
        processor.read("item", replica="far")


def test_a_replica_that_was_lost_is_read_again_once_it_has_what_left_the_overlay(
    scene: Scene,
) -> None:
    site = scene.site
    execute(scene.standbys["late"].dsn, "select pg_wal_replay_pause()")
    replica_states(scene, late="lost", far="following")
    drain = site.drain()
    site.submit(Transaction().insert("item", {"id": 1}))
    step(drain)
    wait_until(lambda: scene.items("far"))
    cleaner = OverlayCleaner(site.settings)
    wait_until(lambda: cleaner.clear() and not site.redis.hlen("processor:overlay"))
    replica_states(scene, late="lagging")
    cleaner.clear()
    with pytest.raises(processor.ReplicaLost, match="has not caught up yet"):
        processor.read("item", {"id": 1}, replica="late")
    assert processor.read("item", {"id": 1}).source == "far"
    execute(scene.standbys["late"].dsn, "select pg_wal_replay_resume()")
    site.execute("insert into item values (2)")
    wait_until(lambda: len(scene.items("late")) == 2)
    assert len(processor.read("item", replica="late")) == 2
    cleaner.clear()
    assert site.redis.exists("processor:overlay:missed") == 0
    cleaner.close()


def test_a_replica_rebuilt_from_an_older_copy_is_read_once_it_has_what_left_the_overlay(
    scene: Scene,
) -> None:
    site, far = scene.site, scene.standbys["far"]
    site.start()
    older = copied(far)
    processor.submit(Transaction().insert("item", {"id": 1}))
    wait_until(lambda: scene.items("far"))
    wait_until(lambda: not site.redis.exists("processor:overlay", "processor:overlay:missed"))

    far.stop()
    scene.proxy.off()
    shutil.rmtree(far.data)
    older.rename(far.data)
    far.start()

    wait_until(lambda: site.redis.hexists("processor:overlay:missed", "far"))
    assert scene.items("far") == []
    with pytest.raises(processor.ReplicaLost, match="has not caught up yet"):
        processor.read("item", {"id": 1}, replica="far")
    assert len(processor.read("item", {"id": 1})) == 1
    scene.proxy.on()
    wait_until(lambda: not site.redis.exists("processor:overlay:missed"), timeout=20)
    assert len(processor.read("item", {"id": 1}, replica="far")) == 1


def test_a_restarted_replica_is_read_while_the_primary_is_unreachable(scene: Scene) -> None:
    site, far = scene.site, scene.standbys["far"]
    site.start()
    processor.submit(Transaction().insert("item", {"id": 1}))
    wait_until(lambda: scene.items("far"))
    wait_until(lambda: site.redis.hexists("processor:cleared", "far"))
    before = site.redis.hget("processor:servers", "far").split()[0]
    scene.primary.kill()

    far.stop()
    far.start()

    wait_until(lambda: site.redis.hget("processor:servers", "far").split()[0] != before)
    (row,) = processor.read("item", {"id": 1}, replica="far")
    assert (row.source, row.complete) == ("far", True)
    assert not site.redis.exists("processor:overlay:missed")


def test_a_damaged_position_of_a_lost_replica_is_repaired(scene: Scene) -> None:
    missed = "processor:overlay:missed"
    for name in (b"late", b"gone", b"\xff"):
        scene.site.redis.hset(missed, name, b"\xff")
    with pytest.raises(processor.ReplicaLost, match="has not caught up yet"):
        processor.read("item", replica="late")
    assert processor.read("item").source == "far"
    cleaner = OverlayCleaner(scene.site.settings)
    wait_until(lambda: cleaner.clear() and not scene.site.redis.exists(missed))
    cleaner.close()
    assert processor.read("item").source == "late"


def test_a_write_stays_in_the_overlay_while_a_replica_cannot_be_asked(scene: Scene) -> None:
    site = scene.site
    scene.standbys["far"].kill()
    drain = site.drain()
    site.submit(Transaction().insert("item", {"id": 1}))
    step(drain)
    wait_until(lambda: scene.items("late"))
    cleaner = OverlayCleaner(site.settings)
    with pytest.raises(processor.DatabaseUnavailable):
        cleaner.clear()
    assert site.redis.hlen("processor:overlay") == 1
    assert processor.read("item", {"id": 1})[0].source == "late"
    scene.standbys["far"].start()
    wait_until(lambda: scene.items("far"), ignore=Exception)
    assert processor.read("item", {"id": 1}, replica="far")[0].source == "far"
    cleaner.clear()
    assert site.redis.hlen("processor:overlay") == 0
    cleaner.close()


def test_a_write_that_no_server_shows_yet_is_reported_as_behind(scene: Scene) -> None:
    """Its table is not in the overlay, and the entry is still in the stream."""
    receipt = scene.site.submit(Transaction().insert("account", {"id": 1}))[0]
    with pytest.raises(processor.ReplicaBehind):
        processor.read("item", {"id": 1}, after=str(receipt))
    step(scene.site.drain())
    assert processor.read("item", {"id": 1}, after=receipt) == []
    wait_until(lambda: execute(scene.standbys["late"].dsn, "select * from account"))
    assert processor.read("item", after=receipt, replica="late").source == "late"


def test_a_session_that_ended_is_replaced(scene: Scene) -> None:
    for _ in range(2):
        assert processor.read("item", replica="late") == []
        execute(
            scene.standbys["late"].dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name ="
            " 'processor reads'",
        )


def test_a_forked_child_reads_over_connections_of_its_own(scene: Scene) -> None:
    scene.site.submit(Transaction().insert("item", {"id": 1}))
    assert len(processor.read("item")) == 1
    pid = os.fork()
    if not pid:
        found = [len(processor.read("item", replica=name)) for name in ("late", "far", "primary")]
        os._exit(0 if found == [1, 1, 1] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [len(processor.read("item")) for _ in range(3)] == [1, 1, 1]
