"""A stream that Redis lost alone: evicted, deleted, or replaced by another one (rule 107)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

import processor
from processor.buffer.entry_ids import StreamHistory, decoded
from processor.drain.drain import Drain
from processor.web.gauges import gauges
from tests.harness.cli import Cli
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until


@pytest.fixture
def paused(site: Site, cli: Cli) -> Iterator[Site]:
    """A site whose queue is paused: what is accepted stays in the stream."""
    cli.use(site.mapping)
    processor.configure(site.mapping)
    yield site
    processor.configure({})


_later = itertools.count(1e9, 60.0)


def look(drain: Drain) -> None:
    """Run a pass, and have the owner look at the streams and keep what it saw."""
    step(drain)
    drain._maintenance._streams.look(drain.owners.owned, next(_later))


def pause(drain: Drain, cli: Cli) -> None:
    assert cli("queues", "pause", "default").code == 0
    wait_until(lambda: step(drain) or drain.state().lanes["default:0"].status == "paused")


def lost_entries(drain: Drain) -> float:
    """The metric of the lane."""
    (found,) = [number for name, labels, number in gauges(drain.state())
                if name == "lost_entries" and ("lane", "default:0") in labels]  # fmt: skip
    return found


def levels(cli: Cli, command: str, check: str) -> list[str]:
    found = cli(command, "--json").records
    return [each["level"] for each in found if each["check"] == check]


@pytest.mark.parametrize("written_again", [False, True])
def test_a_stream_that_redis_lost_is_named_until_it_is_acknowledged(
    written_again: bool, paused: Site, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    site, drain = paused, paused.drain()
    (committed,) = site.submit(write(0))
    look(drain)
    pause(drain, cli)
    receipts = site.submit(*(write(n) for n in range(1, 101)))
    look(drain)
    assert site.depth() == 100

    site.redis.unlink(site.lane().stream)
    if written_again:
        site.submit(write(101))
    look(drain)

    text = f"entries from {receipts[0].entry_id} to"
    assert "lane default:0: Redis went back or lost the stream" in caplog.text
    assert text in caplog.text
    assert "100 were in it when it was last seen" in drain.state().loss
    assert lost_entries(drain) == 100
    assert {receipt.status().state for receipt in receipts} == {"lost"}
    assert receipts[0].wait(timeout=5).state == "lost"
    assert committed.status().state == "committed"
    assert (levels(cli, "verify", "loss"), levels(cli, "doctor", "losses")) == (["fail"], ["fail"])
    drain.publish(drain.state())
    assert text in cli("status").error

    assert "acknowledged: lane default:0" in cli("verify", "--acknowledge-losses").error
    look(drain)
    assert drain.state().loss == ""
    assert lost_entries(drain) == 0
    assert levels(cli, "doctor", "losses") == ["ok"]
    assert receipts[0].status().state == "lost"

    assert cli("queues", "resume", "default").code == 0
    (later,) = site.submit(write(102))
    wait_until(lambda: step(drain) or later.status().state == "committed")
    assert site.tape() == ([0, 101, 102] if written_again else [0, 102])
    assert levels(cli, "verify", "loss") == ["ok"]


def test_a_loss_while_no_processor_ran_is_found_by_the_next_owner(
    paused: Site, cli: Cli
) -> None:
    site, drain = paused, paused.drain()
    look(drain)
    pause(drain, cli)
    receipts = site.submit(*(write(n) for n in range(1, 11)))
    look(drain)
    drain.leave()
    site.redis.delete(site.lane().stream)
    site.submit(write(11))

    for _ in range(2):
        following = site.drain()
        step(following)
        assert "10 were in it when it was last seen" in following.state().loss
        following.leave()
    assert receipts[-1].status().state == "lost"


def test_work_as_usual_is_no_loss(site: Site) -> None:
    for _ in range(2):
        drain = site.drain()
        site.submit(*(write(n) for n in range(1, 11)))
        look(drain)
        site.submit(write(11), write(12, delay=1))
        look(drain)
        assert drain.state().loss == ""
        drain.leave()
    assert site.one("select count(*) from processor.lane where lost is not null") == 0


BEFORE = StreamHistory("50-0", "90-0", 40, 5)


@pytest.mark.parametrize(
    ("now", "continues"),
    [
        (StreamHistory("70-0", "90-0", 40, 2), True),
        (StreamHistory(None, "90-0", 40, 0), True),
        (StreamHistory("95-0", "99-0", 45, 5), True),
        (StreamHistory(None, "90-0", None, 0), True),
        # A crash of Redis undid the removal of settled entries.
        (StreamHistory("10-0", "95-0", 41, 30), True),
        # There is no stream, or another one, or an earlier one.
        (StreamHistory(), False),
        (StreamHistory("95-0", "99-0", 2, 2), False),
        (StreamHistory("95-0", "99-0", 60, 60), False),
        (StreamHistory("10-0", "80-0", 39, 39), False),
        (StreamHistory(None, "80-0", None, 0), False),
    ],
)
def test_only_a_stream_that_went_back_is_taken_for_lost(
    now: StreamHistory, continues: bool
) -> None:
    assert now.continues(BEFORE) is continues
    assert decoded(now.encoded()) == now
    assert decoded("damaged") is None
