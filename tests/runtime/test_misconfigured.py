"""A server that answers and refuses the processor: a person has to act, so a person is told.

No attempt is spent, as in any outage, and the work goes on by itself once the cause is mended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from psycopg2.extensions import make_dsn

from processor.drain.gate import Gate
from processor.embedded import PostgresServer, RedisServer
from processor.runtime import drain_thread
from processor.telemetry import metrics
from tests.harness import pages
from tests.harness.cli import Cli
from tests.harness.pages import sample
from tests.harness.servers import Factory
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

SiteOf = Callable[..., Site]
ROLE = "app"
PASSWORD = "canary-word"
GRANTS = (
    f"grant usage on schema processor to {ROLE};"
    f" grant all on all tables in schema processor to {ROLE};"
    f" grant execute on all functions in schema processor to {ROLE};"
    f" grant all on tape to {ROLE}"
)


@dataclass
class Broken:
    """A way to refuse a processor, and to let it in again."""

    refuse: Callable[[], object]
    mend: Callable[[], object]
    said: str


def of_postgres(case: str, site: Site, server: PostgresServer) -> Broken:
    if case == "a wrong password":
        hba = server.data / "pg_hba.conf"
        trusting = hba.read_text()

        def require() -> None:
            hba.write_text(f"host all {ROLE} all scram-sha-256\nlocal all {ROLE} scram-sha-256\n"
                           + trusting)
            site.execute(f"alter role {ROLE} password 'another'")
            site.execute("select pg_reload_conf()")
            end(site)

        return Broken(
            require, lambda: site.execute(f"alter role {ROLE} password '{PASSWORD}'"),
            "password authentication failed",
        )
    if case == "a role that may not log in":
        def forbid() -> None:
            site.execute(f"alter role {ROLE} nologin")
            end(site)

        return Broken(
            forbid, lambda: site.execute(f"alter role {ROLE} login"), "not permitted to log in"
        )
    def revoke() -> None:
        site.execute(f"revoke all on processor.ledger from {ROLE}")
        end(site)

    return Broken(revoke, lambda: site.execute(GRANTS), "lacks privileges on processor.ledger")


def end(site: Site) -> None:
    site.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'")


@pytest.mark.parametrize(
    "case", ["a wrong password", "a role that may not log in", "missing rights"]
)
def test_a_refusal_of_postgres_is_said_again_and_again_and_costs_no_attempt(
    case: str, own_postgres: Factory, site_of: SiteOf, cli: Cli,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Rule 106."""
    monkeypatch.setattr(Gate, "REPORT", 0.5)
    caplog.set_level(logging.WARNING)
    server = own_postgres()
    site = site_of(postgres=server)
    site.execute(f"create role {ROLE} login password '{PASSWORD}'")
    site.execute(GRANTS)
    dsn = make_dsn(site.dsn, user=ROLE, password=PASSWORD)
    site.start(site.changed(database={"dsn": dsn}))
    broken = of_postgres(case, site, server)
    outages = metrics.value("outages")

    broken.refuse()
    site.submit(write(1, attempts=1), write(2, attempts=1))
    check(site, cli, caplog, broken)

    broken.mend()
    site.commits(1, 2)
    site.shows("running")
    assert site.dead() == []
    assert metrics.value("outages") == outages + 1
    assert "outage over after" in caplog.text
    assert PASSWORD not in caplog.text + pages.page("/health")[1].decode()


def check(site: Site, cli: Cli, caplog: pytest.LogCaptureFixture, broken: Broken) -> None:
    """Check everything that a person may look at."""
    site.shows("misconfigured")
    wait_until(lambda: any("misconfigured for " in each for each in caplog.messages), 10.0)
    assert any(each.startswith("misconfigured") and broken.said in each for each in caplog.messages)
    shown = pages.health()["background_processor"]
    assert shown["status"] == "misconfigured"
    assert broken.said in shown["reason"]
    assert [pages.page(path)[0] for path in ("/health", "/health/live", "/health/ready")] == [
        200, 200, 503,
    ]  # fmt: skip
    assert sample("status", status="misconfigured") == 1
    cli.use(site.mapping)
    wait_until(lambda: "misconfigured" in (said := cli("status")).out and said.code == 1)


@pytest.mark.parametrize("case", ["a wrong password", "missing rights"])
def test_a_refusal_of_redis_is_said_again_and_again(
    case: str, own_redis: Factory, site_of: SiteOf, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Rule 106."""
    monkeypatch.setattr(Gate, "REPORT", 0.5)
    server: RedisServer = own_redis()
    site = site_of(redis=server)
    site.redis.acl_setuser("user", enabled=True, reset=True, passwords=[f"+{PASSWORD}"],
                           keys=["*"], categories=["+@all"])
    url = server.url.replace("redis://", f"redis://user:{PASSWORD}@")
    drain_thread.start(site.changed(redis={"url": url}))
    site.shows("running")

    if case == "a wrong password":
        site.redis.acl_setuser("user", enabled=True, reset_passwords=True, passwords=["+another"])
        site.redis.execute_command("CLIENT", "KILL", "USER", "user")
    else:
        site.redis.acl_setuser("user", enabled=True, commands=["-smembers"])
    site.submit(write(1, attempts=1))

    site.shows("misconfigured")
    wait_until(lambda: any("misconfigured for " in each for each in caplog.messages), 10.0)
    site.redis.acl_setuser("user", enabled=True, passwords=[f"+{PASSWORD}"],
                           commands=["+smembers"])
    site.commits(1)
    site.shows("running")
    assert PASSWORD not in caplog.text


def test_an_outage_is_reported_once_a_minute_with_its_duration() -> None:
    """Rule 106."""
    gate = Gate()

    reported = [second for second in range(200) if gate.shut(float(second), "away")]

    assert reported == [0, 60, 120, 180]
    assert gate.open(200.0) == 200.0
    assert gate.shut(201.0, "away")
    assert not gate.shut(202.0, "away")
    assert gate.shut(203.0, "refused", status="misconfigured"), "another remedy is news"
