"""The command line on replicas: how far they are, and what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from processor.buffer import replica_status
from processor.connections.redis_client import RedisConnection
from processor.embedded import PostgresServer, Standby
from processor.runtime import drain_thread
from processor.telemetry.status import Replica, timestamp
from tests.harness.cli import Cli
from tests.harness.servers import Factory
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


def checked(cli: Cli, site: Site) -> dict[str, tuple[str, str]]:
    """Level and finding of each check of replicas."""
    rows = cli.use(site.mapping)("doctor", "--json").records
    return {r["check"]: (r["level"], r["found"]) for r in rows if r["section"] == "replicas"}


def test_status_shows_how_far_each_replica_is(
    cli: Cli, site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(postgres=primary, replicas={"servers": {"near": standby.dsn}})
    site.start()
    site.submit(write(1))
    site.commits(1)
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["lag"] == 0.0)

    at_site = cli.use(site.mapping)
    (record,) = at_site("status", "--json").records
    shown = at_site("status")

    near = record["replicas"]["near"]
    assert near["status"] == "following"
    assert near["heard"]
    assert any(line.split()[:2] == ["near", "following"] for line in shown.lines)
    assert standby.dsn not in str(record)


@pytest.mark.parametrize(
    ("state", "ago", "interval", "shown"),
    [
        ("following", 1, 0.1, ("following", 0.0)),
        ("following", 95, 0.1, ("unheard", None)),
        ("away", 95, 0.1, ("unheard", None)),
        ("lost", 95, 0.1, ("lost", 0.0)),
        ("following", 95, 20.0, ("following", 0.0)),
        ("following", 105, 20.0, ("unheard", None)),
    ],
)
def test_status_shows_a_replica_without_recent_progress_as_unheard(
    cli: Cli, site_of: Callable[..., Site], state: str, ago: int, interval: float,
    shown: tuple[str, float | None],
) -> None:  # fmt: skip
    """It was removed from the settings; its last progress stays in Redis."""
    site = site_of(replicas={"interval": interval})
    then = time.time() - ago
    replica = Replica(state, at=then, lsn="0/3000000", lag=0.0, told=then)
    site.redis.execute_command(*replica_status.publish("processor", "near", replica))

    at_site = cli.use(site.mapping)
    near = at_site("status", "--json").records[0]["replicas"]["near"]

    assert (near["status"], near["lag"]) == shown
    assert near["heard"] == timestamp(then)
    line = next(line for line in at_site("status").lines if line.split()[:1] == ["near"])
    assert shown[0] in line
    assert ("0.0s" in line) is (shown[1] is not None)


def test_status_names_the_commits_that_a_failover_lost(cli: Cli, site: Site) -> None:
    site.start()
    redis = RedisConnection(site.settings.redis.url, 1.0)
    redis.calls(
        replica_status.record_losses("processor", "timeline 1 of 7", "timeline 2 of 7", ["a", "b"])
    )
    redis.close()

    at_site = cli.use(site.mapping)

    assert at_site("status", "--json").records[0]["losses"] == [
        {"from": "timeline 1 of 7", "to": "timeline 2 of 7", "ids": ["a", "b"]}
    ]
    assert "2 commits of timeline 1 of 7 lost in a failover" in at_site("status").error


def test_doctor_finds_no_problem_with_a_usable_replica(
    cli: Cli, site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(postgres=primary, replicas={"servers": {"near": standby.dsn}})
    # The database, and then the schema, reach the replica with a delay.
    wait_until(lambda: checked(cli, site)["near"][0] == "ok", message=lambda: checked(cli, site))


@pytest.mark.parametrize(
    ("server", "level", "words"),
    [
        ("primary", "warn", "it is a primary"),
        ("stranger", "fail", "another cluster"),
        ("nobody", "fail", "cannot connect to PostgreSQL"),
    ],
)
def test_doctor_reports_a_server_that_is_not_a_replica(
    cli: Cli, site_of: Callable[..., Site], primary: PostgresServer, own_postgres: Factory,
    server: str, level: str, words: str,
) -> None:  # fmt: skip
    addresses: dict[str, Any] = {
        "primary": lambda: primary.dsn,
        "stranger": lambda: own_postgres(copy_of=None).dsn,
        "nobody": lambda: "host=127.0.0.1 port=1 dbname=postgres",
    }
    site = site_of(postgres=primary, replicas={"servers": {"near": addresses[server]()}})

    found = checked(cli, site)["near"]

    assert found[0] == level
    assert words in found[1]


def test_doctor_reports_a_missing_replica_that_settling_waits_for(
    cli: Cli, site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(
        postgres=primary, settle="replicated", replicas={"promotable": ["near", "gone"]}
    )
    wait_until(lambda: "near" in str(checked(cli, site)["pg_stat_replication"]))

    found = checked(cli, site)

    assert found["gone"][0] == "fail"
    assert "near" not in found


def test_an_entry_that_waits_for_a_replica_is_explained_and_passes_verify(
    cli: Cli, site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    replicas = {"servers": {"near": standby.dsn, "gone": "host=127.0.0.1 port=1"}}
    site = site_of(postgres=primary, settle="replicated", replicas=replicas)
    site.start()
    (receipt,) = site.submit(write(1))
    site.commits(1)
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["lag"] == 0.0)
    at_site = cli.use(site.mapping)

    answer = at_site("explain", receipt.id, "--json").records[0]

    assert answer["place"] == "applied"
    assert answer["replicas"] == {"near": True, "gone": None}
    assert "until the replicas have it" in answer["why"]
    assert "gone: unreachable, near: yes" in str(at_site("explain", receipt.id).lines)
    assert at_site("verify").code == 0
    wait_until(lambda: "1 committed entries wait" in site.reason)
    assert drain_thread.stop()
    assert at_site("verify").code == 0
