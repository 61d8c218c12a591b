"""What is published about replicas is true at that moment, whichever processor owns the lanes."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psycopg2
import pytest

from processor.buffer import commit_notes
from processor.connections.wal_position import Position
from tests.harness.replicas import Replicas
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

QUEUES = ("high", "default", "low")
TURNS = 6


class Claim(NamedTuple):
    """What was published about a replica, and what the replica then showed."""

    replica: str
    position: Position
    lanes: list[str]
    shown: set[str]


class Auditor(threading.Thread):
    """Reads each entry of `<ns>:replayed`, and asks the replica at once what it shows."""

    def __init__(self, site: Site, replicas: Replicas) -> None:
        super().__init__(daemon=True)
        self._site, self._replicas = site, replicas
        self.done = threading.Event()
        self.claims: list[Claim] = []

    def run(self) -> None:
        shown = {name: psycopg2.connect(dsn) for name, dsn in self._replicas.servers.items()}
        for connection in shown.values():
            connection.autocommit = True
        last, stream = "0", f"{self._site.settings.namespace}:replayed"
        while not self.done.is_set():
            reply = self._site.redis.xread({stream: last}, block=100)
            for entry_id, fields in reply[0][1] if reply else ():
                last = entry_id
                found = {k.decode(): v.decode() for k, v in fields.items()}
                if "position" not in found:
                    continue  # A withdrawal.
                with shown[found["replica"]].cursor() as cursor:
                    cursor.execute("select id::text from processor.ledger")
                    ids = {i for (i,) in cursor.fetchall()}
                position, lanes = Position.parse(found["position"]), found["lanes"].split(",")
                self.claims.append(Claim(found["replica"], position, lanes, ids))
        for connection in shown.values():
            connection.close()


@pytest.mark.soak
def test_no_claim_is_false_while_two_processors_take_lanes_from_each_other(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    replicas.delay("far", "40ms")
    site = followed(batch={"entries": 3})
    auditor = Auditor(site, replicas)
    auditor.start()
    numbers = itertools.count(1)
    done = threading.Event()
    receipts: list[object] = []

    def produce() -> None:
        while not done.wait(0.004):
            lane = next(numbers) % 3
            receipts.extend(site.submit(*(
                write(next(numbers), queue=QUEUES[lane]) for _ in range(4)
            )))  # fmt: skip

    producer = threading.Thread(target=produce)
    producer.start()
    owners = [site.run(), site.run()]
    for turn in range(TURNS):
        # The owner of the lanes ends, cleanly or not, and starts again as the other's standby.
        before = len(auditor.claims)
        wait_until(lambda before=before: len(auditor.claims) > before + 20, 15)
        leaving = owners.pop(0)
        if turn % 2:
            leaving.send(signal.SIGKILL)
            leaving.wait(10)
        else:
            leaving.terminate()
        owners.append(site.run())
    done.set()
    producer.join()
    wait_until(lambda: all(site.depth(f"{q}:0") == 0 for q in QUEUES), 20)
    wait_until(lambda: site.one("select count(*) from processor.ledger") == len(receipts), 20)
    auditor.done.set()
    auditor.join()
    for owner in owners:
        owner.terminate()

    assert len(auditor.claims) > 20 * TURNS
    assert list(itertools.islice(false_claims(site, auditor.claims), 3)) == []


def false_claims(site: Site, claims: list[Claim]) -> Iterator[str]:
    """Find claims about a replica that showed less, by the positions in the commit notes."""
    for lane in (f"{queue}:0" for queue in QUEUES):
        commits = list(committed(site, lane))
        assert commits
        for claim in claims:
            missing = [
                i for i, at in commits
                if lane in claim.lanes and claim.position.reaches(at) and i not in claim.shown
            ]  # fmt: skip
            if missing:
                yield f"{claim.replica} at {claim.position}: {len(missing)} of {lane}"


def committed(site: Site, lane: str) -> Iterator[tuple[str, Position]]:
    """Yield each transaction of a lane with the position of its commit note."""
    ledger = site.execute("select id::text, entry from processor.ledger where lane = %s", (lane,))
    for _, fields in site.redis.xrange(site.lane(lane).commits):
        note = commit_notes.parse([part for pair in fields.items() for part in pair])
        for transaction, entry in ledger:
            told = note.outcome_of(transaction, entry)
            if told and told.position:
                yield transaction, told.position
