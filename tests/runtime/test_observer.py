"""What pages, metrics and status show in outages: the truth within five seconds, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from processor.buffer import parked
from processor.buffer.observation import BufferObserver
from processor.connections.redis_client import RedisConnection
from processor.runtime import drain_thread
from processor.transaction.entry import Entry
from tests.harness import pages
from tests.harness.cli import Cli
from tests.harness.pages import sample, scrape
from tests.harness.servers import Factory
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

SiteOf = Callable[..., Site]
LANE = "default:0"
OF_LANES = {"depth", "oldest_age_seconds", "scheduled", "parked", "parked_oldest_age_seconds"}


def figures(lane: str = LANE) -> dict[str, Any]:
    """Return the figures of a lane on /health."""
    return dict(pages.health()["lanes"][lane])


def started(site: Site) -> None:
    """Start the processor without waiting for anything."""
    drain_thread.start(site.settings)


@pytest.mark.parametrize("when", ["running", "started during the outage"])
def test_an_outage_of_postgres_shows_a_growing_backlog_that_ages(
    when: str, own_postgres: Factory, site_of: SiteOf, cli: Cli
) -> None:
    """Rule 97; from the first scrape, also of a processor that never reached PostgreSQL."""
    server = own_postgres()
    site = site_of(postgres=server)
    if when == "running":
        site.start()
        assert sample("postgres_up") == 1
    server.stop("fast")
    if when != "running":
        started(site)
    site.submit(*(write(n) for n in range(1, 4)))

    if when != "running":
        assert sample("depth", lane=LANE) == 3, "the first scrape shows it"
    wait_until(lambda: sample("depth", lane=LANE) == 3, 5.0)
    wait_until(lambda: sample("postgres_up") == 0, 5.0)
    age = sample("oldest_age_seconds", lane=LANE)
    assert age is not None
    wait_until(lambda: sample("oldest_age_seconds", lane=LANE) > age + 1.0, 5.0)
    assert sample("redis_up") == 1
    assert sample("dead_letters") is None, "PostgreSQL counts them"
    shown = pages.health()
    assert shown["background_processor"]["status"] == "outage"
    assert (shown["lanes"][LANE]["depth"], shown["lanes"][LANE]["status"]) == (3, "outage")
    assert (shown["redis"]["up"], shown["postgres"]["up"]) == (True, False)
    assert str(server.port) in shown["postgres"]["reason"]
    site.submit(write(4))
    wait_until(lambda: sample("depth", lane=LANE) == 4, 5.0)
    assert cli.use(site.mapping).json("status")[0]["lanes"][LANE]["depth"] == 4

    server.start()
    site.commits(1, 2, 3, 4)
    wait_until(lambda: (sample("depth", lane=LANE), sample("postgres_up")) == (0, 1), 5.0)


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_an_outage_of_redis_shows_no_figure_that_nobody_knows(
    how: str, own_redis: Factory, site_of: SiteOf
) -> None:
    """Rule 97: what is no longer known is not shown."""
    server = own_redis()
    site = site_of(redis=server)
    site.start()
    wait_until(lambda: (sample("depth", lane=LANE), sample("redis_up")) == (0, 1), 5.0)

    server.stop() if how == "stopped" else server.freeze()

    wait_until(lambda: sample("redis_up") == 0, 6.0)
    assert not OF_LANES & pages.names()
    assert {figures()[name] for name in ("depth", "scheduled", "parked", "oldest_age")} == {None}
    assert pages.health()["redis"]["reason"]
    wait_until(lambda: sample("postgres_up") == 1, 5.0)
    wait_until(lambda: sample("status", status="outage") == 1, 5.0)
    server.start() if how == "stopped" else server.thaw()
    wait_until(lambda: (sample("depth", lane=LANE), sample("redis_up")) == (0, 1), 10.0)


def test_a_processor_that_is_started_while_redis_is_stopped_shows_no_zero(
    own_redis: Factory, site_of: SiteOf
) -> None:
    server = own_redis()
    site = site_of(redis=server)
    server.stop()
    started(site)

    first = scrape()

    assert first["redis_up", frozenset()] == 0
    assert not OF_LANES & {name for name, _ in first}
    wait_until(lambda: sample("postgres_up") == 1, 5.0)


def test_a_drain_that_waits_for_a_silent_postgres_does_not_stop_the_figures(
    own_postgres: Factory, site_of: SiteOf
) -> None:
    """The drain thread waits until the deadline of its call, here much longer than five seconds."""
    server = own_postgres()
    site = site_of(postgres=server, database={"call_timeout": 20.0}, stop_timeout=30.0)
    site.start()
    server.freeze()
    site.submit(*(write(n) for n in range(1, 4)))

    wait_until(lambda: sample("depth", lane=LANE) == 3, 5.0)
    wait_until(lambda: sample("postgres_up") == 0, 6.0)

    server.thaw()
    site.commits(1, 2, 3)


def test_many_readers_cost_redis_one_look_a_second(site: Site) -> None:
    """Rule 97."""
    site.start()
    assert sample("redis_up") == 1
    before, begun = looks(site), time.monotonic()

    for _ in range(300):
        pages.page("/metrics")

    # The drain looks for lanes once a second, too.
    assert looks(site) - before <= 2 * (time.monotonic() - begun + 2)


def looks(site: Site) -> int:
    """Return how often somebody asked Redis for the lanes."""
    return int(site.redis.info("commandstats")["cmdstat_smembers"]["calls"])


# Parked and scheduled transactions.


def test_what_waits_behind_a_dead_letter_is_shown_with_its_age(site: Site, cli: Cli) -> None:
    site.execute("create table failing (n int check (n > 0))")
    site.start()
    site.submit(write(1, key="k", attempts=1).insert("failing", {"n": 0}))
    site.submit(write(2, key="k"), write(3, key="k"), write(4, delay=60))
    site.parks(2)

    wait_until(lambda: sample("parked", lane=LANE) == 2)
    age = sample("parked_oldest_age_seconds", lane=LANE)
    assert age is not None
    wait_until(lambda: sample("parked_oldest_age_seconds", lane=LANE) > max(age, 0.5), 5.0)
    assert sample("scheduled", lane=LANE) == 1
    assert sample("oldest_age_seconds", lane=LANE) == 0
    assert (figures()["parked"], figures()["scheduled"]) == (2, 1)
    shown = cli.use(site.mapping).json("status")[0]["lanes"][LANE]
    assert (shown["parked"], shown["scheduled"], shown["oldest_age"]) == (2, 1, None)
    assert shown["parked_oldest_age"] > 0.5

    site.ask(site.dead()[0][0], "discard")
    site.commits(2, 3)
    wait_until(lambda: sample("parked", lane=LANE) == 0)
    assert sample("parked_oldest_age_seconds", lane=LANE) == 0


def test_the_oldest_of_many_parked_transactions_is_found_in_a_few_looks(site: Site) -> None:
    lane, now = site.lane(), int(time.time() * 1000)
    ages = {f"{n:032x}": 1_000_000 * n for n in range(1, 1501)}
    for i, age in ages.items():
        entry = Entry(f"{now - age}-0", i, "0" * 32, (), (), b"{}")
        site.redis.execute_command(*parked.put(lane, entry, 0))
    redis = RedisConnection(site.settings.redis.url, 5.0)
    observer = BufferObserver(site.settings)

    def age(*, complete: bool = False) -> float:
        """Return the age of the oldest one, in thousands of seconds."""
        seen = observer.observe(redis, complete=complete).lanes[LANE]
        assert (seen.parked, seen.depth) == (len(site.redis.hkeys(lane.parked)), 0)
        return (seen.parked_oldest_age or 0.0) // 1000

    wait_until(lambda: age() == 1500)
    site.redis.hdel(lane.parked, f"{1500:032x}", f"{1499:032x}")
    wait_until(lambda: age() == 1498)
    observer = BufferObserver(site.settings)
    assert age(complete=True) == 1498
    redis.close()


def test_the_figures_of_a_lane_that_was_removed_are_gone(site: Site) -> None:
    site.redis.sadd(f"{site.settings.namespace}:lanes", "old:0")
    site.start()
    wait_until(lambda: sample("depth", lane="old:0") == 0)

    site.redis.srem(f"{site.settings.namespace}:lanes", "old:0")

    wait_until(lambda: ("lane", "old:0") not in {each for _, own in scrape() for each in own}, 5.0)
    assert "old:0" not in pages.health()["lanes"]
