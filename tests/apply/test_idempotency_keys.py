"""An idempotency key is one transaction in its namespace, whichever release submits it (rule 96).

Release 0.1 gives a key the same id in every namespace, and stores no key with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import processor
from processor.admin import consistency, dead_letter_requests
from processor.admin.sessions import OperatorSessions
from processor.buffer import registry
from processor.drain.drain import Drain
from processor.errors import InvalidTransaction
from processor.ledger import dead_letters
from processor.receipts.ledger_sessions import in_ledger
from processor.receipts.status import StatusLookup
from processor.transaction.builder import Transaction
from processor.transaction.ids import derived_id
from tests.harness.cli import Cli
from tests.harness.site import FAILING, Site, step, write
from tests.harness.wait import wait_until

LANE = "default:0"
KEY = "nightly-2026-11-28"
STATES = "select outcome from processor.ledger where id = any (%s::uuid[])"


def new(n: int = 1, scope: str | None = None, name: str = KEY, **options: Any) -> Transaction:
    """What this release submits with the key."""
    return write(n, scope, idempotency_key=name, **options)


def old(n: int = 1, scope: str | None = None, name: str = KEY, **options: Any) -> Transaction:
    """What release 0.1 submits with the same key: another id, and no key in the body."""
    return write(n, scope, id=derived_id(name), **options)


def outcomes(site: Site, *names: str) -> list[str]:
    """Return the outcomes of both ids of keys."""
    ids = [i for name in names or (KEY,) for i in (old(name=name).id, new(name=name).id)]
    return [outcome for (outcome,) in site.execute(STATES, (ids,))]


def is_consistent(site: Site) -> None:
    """Check that `verify` finds nothing."""
    sessions = OperatorSessions(site.settings)
    with sessions.redis() as redis, sessions.database() as database:
        identity = registry.written_identity(redis, site.settings.namespace)
        assert identity is not None
        assert list(consistency.compare(redis, database, site.settings, identity, [LANE])) == []


def decide(site: Site, drain: Drain, transaction_id: str, verb: str) -> None:
    """Request a decision on a dead letter, and run passes until it was carried out or rejected."""
    site.ask(transaction_id, verb)
    requested = "select count(*) from processor.dead_letter where request is not null"
    wait_until(lambda: step(drain) or site.one(requested) == 0)


def known(site: Site, transaction_id: str) -> StatusLookup:
    """What a receipt learns from the ledger."""
    with OperatorSessions(site.settings).database() as database:
        found = in_ledger(database, transaction_id)
    assert found is not None
    return found


@pytest.fixture
def configured() -> Iterator[Callable[[Site], None]]:
    yield lambda site: processor.configure(site.mapping)
    processor.configure({})


def test_two_applications_on_one_database_may_use_the_same_key(site_of, configured) -> None:
    applications = [site_of(), site_of(namespace="billing")]
    receipts = []
    for site in applications:
        configured(site)
        first = new()
        receipts += [processor.submit(first), processor.submit(new())]
        assert first.id == receipts[-1].id
        step(site.drain())

    site = applications[0]
    assert site.tape() == [1, 1]
    assert len({receipt.id for receipt in receipts}) == 2
    assert [known(site, each.id).state for each in receipts] == ["committed"] * 4


@pytest.mark.parametrize("first", [old, new])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("second_queue", ["default", "high"])
def test_one_key_submitted_by_two_releases_has_one_effect(
    first: Any, together: bool, second_queue: str, site: Site
) -> None:
    """Whether they meet in one batch, in two batches, or in two lanes."""
    second = old if first is new else new
    drain = site.drain()
    site.submit(first(), write(2))
    if not together:
        step(drain)
    site.submit(write(3), second(queue=second_queue), write(4))
    step(drain)
    site.submit(new(), old())
    step(drain)

    assert sorted(site.tape()) == [1, 2, 3, 4]
    assert outcomes(site) == ["applied", "applied"]
    assert (site.depth(), site.depth("high:0"), site.dead()) == (0, 0, [])
    is_consistent(site)


def test_a_key_of_another_site_of_the_namespace_is_recognized(site_of, own_redis) -> None:
    here, there = site_of(), site_of(redis=own_redis())
    there.submit(old())
    step(there.drain())
    here.submit(new(), write(2))
    step(here.drain())

    assert here.tape() == [1, 2]
    assert outcomes(here) == ["applied", "applied"]


def test_a_key_that_another_application_used_with_release_0_1_is_free(site_of) -> None:
    site, other = site_of(), site_of(namespace="billing")
    other.submit(old())
    step(other.drain())
    drain = site.drain()
    site.submit(new(), write(2), new(3, name="another"))
    step(drain)
    site.submit(new())
    step(drain)

    assert site.tape() == [1, 1, 2, 3]
    is_consistent(site)


def test_another_payload_with_the_same_key_is_a_dead_letter_in_either_order(site: Site) -> None:
    drain = site.drain()
    for first, second, name in ((old, new, "a"), (new, old, "b")):
        site.submit(first(1, name=name))
        step(drain)
        site.submit(second(2, name=name))
        step(drain)

    assert site.tape() == [1, 1]
    assert [reason for _, _, reason in site.dead()] == [
        "the id was used before for another payload"
    ] * 2
    assert outcomes(site, "a", "b") == ["applied"] * 4
    is_consistent(site)


def test_a_key_that_failed_is_free_for_the_other_release(site: Site) -> None:
    """Isolation takes back both ids of what failed, and keeps both of what did not."""
    site.execute(FAILING)
    drain = site.drain()
    site.submit(*(new(n, "x" if n == 2 else None, str(n)) for n in range(1, 5)))
    step(drain)
    assert site.tape() == [1, 3, 4]
    assert outcomes(site, "1", "3", "4") == ["applied"] * 6
    assert outcomes(site, "2") == []

    site.execute("delete from failing")
    site.submit(*(old(n, "x" if n == 2 else None, str(n)) for n in range(1, 5)))
    step(drain)
    wait_until(lambda: step(drain) or not site.parked())
    assert site.tape() == [1, 3, 4, 2]
    assert outcomes(site, "2") == ["applied"] * 2
    is_consistent(site)


def test_a_dead_letter_whose_key_the_other_release_applied_is_not_applied_again(
    site: Site
) -> None:
    site.execute(FAILING)
    drain = site.drain()
    site.submit(new(1, "x", attempts=1), new(2, "x", "second", attempts=1))
    step(drain)
    assert len(site.dead()) == 2
    site.execute("delete from failing")
    site.submit(old(1, "x"))
    step(drain)
    decide(site, drain, new().id, "retry")
    decide(site, drain, new(name="second").id, "retry")

    assert site.tape() == [1, 2]
    ((dead, _, reason),) = site.dead()
    assert dead == new().id
    assert reason == (f"release 0.1 recorded its idempotency key under the id {old().id}, which is"
                      " applied: discard this one")  # fmt: skip
    # What was applied by the retry is known to release 0.1, and so is what is discarded.
    decide(site, drain, dead, "discard")
    site.submit(old(2, "x", "second"), old(1, "x"))
    step(drain)
    assert site.tape() == [1, 2]
    assert sorted(outcomes(site)) == ["applied", "discarded"]
    is_consistent(site)


def test_a_discarded_key_has_no_effect_from_the_other_release(site: Site) -> None:
    site.execute(FAILING)
    drain = site.drain()
    site.submit(new(1, "x", attempts=1))
    step(drain)
    decide(site, drain, new().id, "discard")
    site.execute("delete from failing")
    site.submit(old(1, "x"))
    step(drain)

    assert site.tape() == []
    assert outcomes(site) == ["discarded", "discarded"]
    assert site.depth() == 0


def test_what_repeats_a_dead_letter_of_release_0_1_shares_its_outcome(
    site: Site, cli: Cli
) -> None:
    site.execute(FAILING)
    cli.use(site.mapping)
    drain = site.drain()
    site.submit(old(1, "x", key="k", attempts=1))
    step(drain)
    site.submit(new(1, "x", key="k"))
    step(drain)
    assert (known(site, new().id).state, known(site, new().id).reason) == (
        known(site, old().id).state, site.dead()[0][2]) == ("dead", site.dead()[0][2])  # fmt: skip
    assert outcomes(site) == ["dead", "dead"]
    assert f"dead retry {old().id}" in cli("explain", "--idempotency-key", KEY).out
    is_consistent(site)

    site.execute("delete from failing")
    decide(site, drain, old().id, "retry")
    site.submit(write(2, key="k"))
    step(drain)
    assert site.tape() == [1, 2]
    assert outcomes(site) == ["applied", "applied"]
    is_consistent(site)


def test_explain_finds_what_release_0_1_submitted_with_a_key(site: Site, cli: Cli) -> None:
    cli.use(site.mapping)
    site.submit(old())
    assert cli.json("explain", "--idempotency-key", KEY)[0]["id"] == old().id
    step(site.drain())
    assert cli.json("explain", "--idempotency-key", KEY)[0]["place"] == "applied"


def test_a_dead_letter_with_a_key_can_be_edited(site: Site) -> None:
    site.execute(FAILING)
    drain = site.drain()
    site.submit(new(1, "x", attempts=1))
    step(drain)
    with OperatorSessions(site.settings).database() as database:
        (letter,) = dead_letters.find(database, new().id)
        body = msgspec.json.decode(letter.body)
        assert (body["id"], body["idempotency_key"]) == (letter.id, KEY)
        body["operations"][0]["values"]["scope"] = "y"
        edited = dead_letter_requests.edited(letter, msgspec.json.encode(body), 10_000)
        assert dead_letters.record_request(
            database, letter, "edit", edited.body, version=edited.version
        )
    wait_until(lambda: step(drain) or site.tape("y") == [1])
    site.submit(old(1, "x"))
    step(drain)

    assert (site.tape("y"), site.tape("x")) == ([1], [])
    with pytest.raises(InvalidTransaction, match="idempotency_key"):
        Transaction.parse(msgspec.json.encode(body))


def test_an_entry_that_repeats_ids_by_hand_stops_no_lane(site: Site) -> None:
    """Anyone who may XADD can give one key several ids, or a transaction its former id."""
    body = msgspec.json.decode(new().encode(0.0, 10_000).body)
    for identity in (body["id"], processor.new_id(), old().id):
        site.put({"v": 2, "tx": msgspec.json.encode(body | {"id": identity})})
    site.submit(write(2))
    drain = site.drain()
    step(drain)

    assert site.tape() == [1, 2]
    assert site.depth() == 0


def test_a_delayed_transaction_keeps_its_key(site: Site) -> None:
    drain = site.drain()
    site.submit(new(delay=0.1))
    time.sleep(0.1)
    wait_until(lambda: step(drain) or site.tape() == [1])
    site.submit(old())
    step(drain)
    assert site.tape() == [1]
    assert outcomes(site) == ["applied", "applied"]
