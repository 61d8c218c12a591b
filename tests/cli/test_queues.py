"""`processor queues` and `processor status`: pauses, lanes and their owners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from processor.runtime import drain_thread
from tests.harness.cli import Cli
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until

MakeSite = Callable[..., Site]


def test_a_paused_queue_accepts_entries_and_applies_them_after_resume(
    at_site: Cli, site: Site
) -> None:
    site.start()
    said = at_site("queues", "pause", "default")
    assert (said.code, said.error) == (
        0, "default is paused until `processor queues resume default`"
    )
    wait_until(lambda: drain_thread.state()["lanes"]["default:0"]["status"] == "paused")
    site.submit(write(1))
    site.submit(write(2, queue="high"))
    site.commits(2)
    row = next(r for r in at_site.json("queues", "list") if r["lane"] == "default:0")
    assert (row["depth"], row["paused"], row["paused_until"]) == (1, True, None)
    assert at_site("queues", "resume", "default").code == 0
    site.commits(2, 1)


def test_a_pause_with_an_end_expires(at_site: Cli, site: Site) -> None:
    said = at_site("queues", "pause", "default", "--for", "3s")
    assert said.code == 0
    until = said.error.removeprefix("default is paused until ")
    site.submit(write(1))
    site.start()
    site.commits(1)
    assert site.one("select committed_at >= %s from processor.ledger", (until,))
    assert not any(r["paused"] for r in at_site.json("queues", "list"))


def test_the_end_of_a_pause_is_listed(at_site: Cli) -> None:
    said = at_site("queues", "pause", "default", "--for", "1h")
    (row,) = (r for r in at_site.json("queues", "list") if r["queue"] == "default")
    assert said.error == f"default is paused until {row['paused_until']}"


def test_a_pause_that_a_full_redis_rejects_has_a_remedy(
    cli: Cli, site_of: MakeSite, own_redis: Any
) -> None:
    site = site_of(redis=own_redis())
    cli.use(site.mapping)
    site.redis.config_set("maxmemory", 1)
    said = cli("queues", "pause", "default")
    assert (said.code, said.error) == (
        69, "default is not paused: Redis has reached its memory limit: give it more memory, or"
        " wait until its backlog is drained, and pause again"
    )  # fmt: skip


def test_lanes_removed_from_the_settings_are_still_listed(at_site: Cli, site: Site) -> None:
    site.redis.sadd("processor:lanes", "old:0")
    row = next(r for r in at_site.json("queues", "list") if r["queue"] == "old")
    assert row["configured"] is False
    assert "old:0" in at_site("queues", "list").out


def test_a_queue_can_be_resumed_while_redis_is_full(
    cli: Cli, site_of: MakeSite, own_redis: Any
) -> None:
    site = site_of(redis=own_redis())
    cli.use(site.mapping)
    site.start()
    assert cli("queues", "pause", "default").code == 0
    site.submit(write(1))
    site.redis.config_set("maxmemory", 1)

    said = cli("queues", "resume", "default")

    assert (said.code, said.err.splitlines()[0]) == (0, "processor: default resumed")
    assert "memory limit" in said.err
    site.commits(1)
    assert cli("queues", "pause", "default").code == 69


# status


def test_a_full_redis_is_not_mistaken_for_a_missing_processor(
    cli: Cli, site_of: MakeSite, own_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = site_of(redis=own_redis())
    cli.use(site.mapping)
    site.start()
    site.redis.config_set("maxmemory", 1)

    wait_until(lambda: "reached its memory limit" in site.reason, message=site.tale)
    assert site.status == "running"
    site.redis.delete(*site.redis.keys("*:state:*"))
    said = cli("status")
    assert said.code == 1
    assert "reached its memory limit" in said.error
    assert "start one" not in said.err

    site.redis.config_set("maxmemory", 0)
    wait_until(lambda: site.reason == "", message=site.tale)
    wait_until(lambda: cli("status").code == 0, message=site.tale)
    full = [r.getMessage() for r in caplog.records if "Redis" in r.getMessage()]
    assert [text.split(":")[0] for text in full] == [
        "Redis has reached its memory limit and rejects new entries",
        "Redis accepts new entries again",
    ]


def test_status_shows_the_owner_of_each_lane_and_fails_without_a_processor(
    at_site: Cli, site: Site
) -> None:
    said = at_site("status")
    assert said.code == 1
    assert "start one with `processor run`" in said.err
    site.start()
    site.submit(write(1))
    site.commits(1)

    def owned() -> Any:
        summary = at_site("status", "--json").records[0]
        return summary if summary["lanes"]["default:0"]["owner"] else None

    summary = wait_until(owned)
    (only,) = summary["processors"]
    assert only["background_processor"]["status"] == "running"
    assert summary["lanes"]["default:0"]["owner"] == only["instance"]
    said = at_site("status")
    assert said.code == 0
    assert only["instance"] in said.out


def test_status_works_while_postgresql_is_unavailable(cli: Cli, site: Site) -> None:
    site.start()
    wait_until(lambda: site.redis.keys("processor:state:*"))
    unavailable = {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}
    assert cli.use(merged(site.mapping, unavailable))("status").code == 0
