"""A transaction may be in the stream twice, after a lost reply or a second click: it is one effect.

The hard cases are copies of parked and dead entries: these must not be parked a second time, since
nothing would ever release them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from processor.connections.postgres_session import PostgresSession as Session
from processor.ledger import dead_letters
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


@pytest.fixture(params=[1, 250], ids=["apart", "together"])
def lane(request: pytest.FixtureRequest, site_of: Callable[..., Site]) -> Site:
    """A site whose copies are in batches of their own, or in one batch with the original."""
    site = site_of(batch={"entries": request.param})
    site.execute("create table parent (id int primary key)")
    site.execute("create table child (parent int references parent)")
    return site


def child(n: int) -> Transaction:
    return write(n, key="k", attempts=50).insert("child", {"parent": 1})


def nothing_is_left(site: Site) -> bool:
    names = site.lane()
    lines = site.redis.zcard(names.blocked) + site.redis.zcard(names.retry)
    return not (site.depth() or site.parked() or lines)


def decide(site: Site, request: str) -> None:
    session = Session(site.settings.database, Progress(), application="operator")
    session.connect()
    for letter in dead_letters.listed(session):
        dead_letters.record_request(session, letter, request)
    session.close()


def test_a_transaction_submitted_again_and_again_is_one_effect(lane: Site) -> None:
    first, second = write(1, key="k"), write(2)

    lane.submit(first, second, first, second, second)
    lane.start()
    lane.submit(first)

    lane.commits(1, 2)
    wait_until(lambda: nothing_is_left(lane))
    lane.submit(second)
    wait_until(lambda: nothing_is_left(lane))
    assert lane.tape() == [1, 2]


def test_a_copy_of_an_entry_that_waits_for_its_retry_does_not_block_its_key(lane: Site) -> None:
    late, follower = child(1), write(2, key="k")
    lane.submit(late, follower, late, follower, late)
    lane.start()
    wait_until(lambda: lane.depth() == 0 and lane.parked() == 2)
    assert lane.tape() == []

    lane.execute("insert into parent values (1)")

    lane.commits(1, 2)
    wait_until(lambda: nothing_is_left(lane), message=lane.tale)


def test_no_entry_waits_behind_a_copy(lane: Site) -> None:
    done, late = write(1, keys=["k", "other"]), child(2)
    lane.submit(done, late)
    lane.start()
    wait_until(lambda: lane.depth() == 0 and lane.parked() == 1)

    lane.submit(done, write(3, key="other"), write(4))

    lane.commits(1, 3, 4)
    lane.execute("insert into parent values (1)")
    lane.commits(1, 3, 4, 2)
    wait_until(lambda: nothing_is_left(lane), message=lane.tale)


@pytest.mark.parametrize("request_", ["discard", "retry"])
def test_a_copy_of_a_dead_letter_does_not_block_its_key(lane: Site, request_: str) -> None:
    lane.execute("alter table tape add constraint small check (n < 10)")
    bad, follower = write(10, key="k"), write(2, key="k")
    lane.submit(bad, follower, bad)
    lane.start()
    wait_until(lambda: lane.depth() == 0 and lane.parked() == 1)
    lane.submit(bad, follower)
    wait_until(lambda: lane.depth() == 0)
    assert len(lane.dead()) == 1

    lane.execute("alter table tape drop constraint small")
    decide(lane, request_)

    lane.commits(*([10, 2] if request_ == "retry" else [2]))
    wait_until(lambda: nothing_is_left(lane), message=lane.tale)


def test_another_payload_under_the_id_of_a_parked_entry_becomes_a_dead_letter(
    lane: Site,
) -> None:
    late = child(1)
    other = Transaction(id=late.id, key="k").insert("tape", {"n": 3})
    lane.submit(late, write(2, key="k"), other)
    lane.start()
    wait_until(lambda: lane.depth() == 0 and lane.dead())

    lane.execute("insert into parent values (1)")

    lane.commits(1, 2)
    wait_until(lambda: nothing_is_left(lane), message=lane.tale)
    assert [(i, reason) for i, _, reason in lane.dead()] == [
        (late.id, "the id was used before for another payload")
    ]


def test_a_copy_of_a_committed_entry_is_no_dead_letter_after_its_table_was_dropped(
    site: Site,
) -> None:
    site.execute("create table brief (n int)")
    known = write(1).insert("brief", {"n": 1})
    site.submit(known)
    site.start()
    site.commits(1)

    site.execute("drop table brief")
    site.submit(known, write(2))

    site.commits(1, 2)
    wait_until(lambda: nothing_is_left(site))
    assert site.dead() == []
