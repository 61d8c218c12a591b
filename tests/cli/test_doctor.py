"""`processor doctor`: each check on a server for which it fails."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver

from processor.cli.doctor import host
from processor.config.settings import Settings
from processor.ledger import schema
from processor.runtime import drain_thread
from tests.harness.cli import Cli, Role, as_role, as_user, poison
from tests.harness.site import Site, merged, step, write
from tests.harness.wait import wait_until


def diagnosis(cli: Cli, section: str, check: str) -> dict[str, str]:
    said = cli("doctor", "--json")
    return next(r for r in said.records if (r["section"], r["check"]) == (section, check))


def test_doctor_runs_all_checks_and_the_checklist(
    at_site: Cli, site: Site
) -> None:
    site.start()
    wait_until(lambda: site.redis.keys("processor:state:*"))
    site.submit(write(1))
    site.commits(1)
    said = at_site("doctor", "--json")
    have = {(row["section"], row["check"]) for row in said.records}
    assert {
        ("redis", "persistence"), ("redis", "eviction"), ("redis", "user"), ("redis", "link"),
        ("postgresql", "session"), ("postgresql", "schema"), ("postgresql", "role"),
        ("postgresql", "timeouts"), ("postgresql", "synchronous_commit"), ("host", "clock"),
        ("host", "shadow"), ("host", "processors"),
    } <= have
    checklist = [row["check"] for row in said.records if row["section"] == "checklist"]
    assert checklist == [
        "small messages", "repeatable work", "leases", "dead letters and alerting", "monitoring",
        "security", "load tests",
    ]
    assert all(row["remedy"] for row in said.records
               if row["level"] != "ok" and row["section"] != "host")
    human = at_site("doctor")
    assert [each.split()[0] for each in human.lines] == [row["level"] for row in said.records]


@pytest.mark.parametrize(
    ("settings", "check", "level", "words"),
    [
        ({"appendonly": "no", "save": ""}, "persistence", "fail", "appendonly no"),
        ({"appendonly": "no", "save": "60 1"}, "persistence", "warn", "snapshots alone"),
        ({"appendonly": "yes", "appendfsync": "no"}, "persistence", "warn", "half a minute"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "persistence", "ok", "two seconds"),
        ({"appendonly": "yes", "appendfsync": "always"}, "persistence", "ok", "on disk"),
        ({"maxmemory-policy": "allkeys-lru"}, "eviction", "fail", "may evict accepted"),
        ({"maxmemory-policy": "volatile-ttl"}, "eviction", "warn", "may evict the states"),
        ({"maxmemory-policy": "noeviction"}, "eviction", "ok", "loses nothing"),
        ({"maxmemory": "0"}, "memory", "warn", "no maxmemory"),
        ({"maxmemory": "4gb"}, "memory", "ok", "in use"),
    ],
)
def test_doctor_judges_durability_and_memory_of_redis(
    cli: Cli, site: Site, own_redis: Any, settings: dict[str, str], check: str, level: str,
    words: str,
) -> None:
    server = own_redis()
    with redis_driver.Redis.from_url(server.url) as client:
        for name, value in settings.items():
            client.config_set(name, value)
    cli.use(merged(site.mapping, {"redis": {"url": server.url}}))
    found = diagnosis(cli, "redis", check)
    assert found["level"] == level
    assert words in found["found"]


def test_doctor_reports_what_a_least_privilege_user_cannot_check(
    cli: Cli, site: Site, own_redis: Any
) -> None:
    server = own_redis()
    url = as_user(server.url, "operator")
    cli.use(merged(site.mapping, {"redis": {"url": url}}))
    assert diagnosis(cli, "redis", "user")["level"] == "ok"
    found = diagnosis(cli, "redis", "persistence")
    assert found["level"] in ("warn", "fail")
    assert cli("doctor").code in (0, 1)


def test_doctor_judges_the_role_and_the_durability_of_a_commit(cli: Cli, site: Site) -> None:
    cli.use(site.mapping)
    found = diagnosis(cli, "postgresql", "role")
    assert (found["level"], "superuser" in found["found"]) == ("warn", True)
    name = f"least_{os.getpid()}"
    site.execute(schema.ROLE.replace("ROLE processor", f"ROLE {name}")
                 .replace("TO processor", f"TO {name}").replace("    TO", " TO"))
    try:
        dsn = as_role(site.dsn, name)
        cli.use(merged(site.mapping, {"database": {"dsn": dsn, "tables": ["tape", "nowhere"]}}))
        assert diagnosis(cli, "postgresql", "role")["level"] == "ok"
        assert diagnosis(cli, "postgresql", "rights")["level"] == "ok"
        assert "insert into tape" in diagnosis(cli, "postgresql", "tables")["found"]
        site.execute(f"revoke insert on processor.ledger from {name}")
        assert diagnosis(cli, "postgresql", "rights")["level"] == "fail"
        site.execute(f"alter role {name} set synchronous_commit = off")
        assert diagnosis(cli, "postgresql", "synchronous_commit")["level"] == "warn"
        site.execute(f"alter role {name} createdb")
        assert "create databases" in diagnosis(cli, "postgresql", "role")["found"]
    finally:
        site.execute(f"drop owned by {name}; drop role {name}")


def test_doctor_does_not_report_missing_privileges_as_an_unavailable_server(
    cli: Cli, site: Site, lowly: Role
) -> None:
    site.start()
    cli.use(merged(site.mapping, {"database": {"dsn": lowly.dsn}}))
    for grant, found in (
        ("select 1", "privileges on schema processor at "),
        (f"grant usage on schema processor to {lowly.name}", "SQLSTATE 42501"),
        (f"grant select on processor.meta to {lowly.name}", "on processor.lane, processor."),
    ):
        site.execute(grant)
        said = cli("doctor", "--json")
        assert said.code == 1
        failed = {r["check"]: r for r in said.records
                  if (r["section"], r["level"]) == ("postgresql", "fail")
                  and r["check"] != "fsync"}  # fmt: skip
        assert list(failed) == ["rights"]
        assert found in failed["rights"]["found"]
        assert "`processor print schema`" in failed["rights"]["remedy"]
        assert diagnosis(cli, "postgresql", "connections")["level"] == "ok"


def test_doctor_does_not_suggest_to_start_a_server_that_responded(
    cli: Cli, site: Site, postgres_server: Any
) -> None:
    missing = {"database": {"dsn": postgres_server.dsn_of("nowhere")},
               "replicas": {"servers": {"near": postgres_server.dsn_of("nowhere")}}}  # fmt: skip
    cli.use(merged(site.mapping, missing))
    found = diagnosis(cli, "postgresql", "server")
    assert found["found"].endswith('FATAL:  database "nowhere" does not exist')
    assert found["remedy"] == "check database.dsn"

    cli.use(merged(site.mapping, {"replicas": missing["replicas"]}))
    found = next(r for r in cli("doctor", "--json").records if r["check"] == "near")
    assert found["found"].endswith('FATAL:  database "nowhere" does not exist')
    assert found["remedy"] == "check replicas.servers"

    cli.use(merged(site.mapping, {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}))
    assert diagnosis(cli, "postgresql", "server")["remedy"] == "start it, or check database.dsn"


def test_an_outage_by_missing_privileges_names_tables_and_remedy(
    site: Site, lowly: Role
) -> None:
    drain = site.drain(site.changed(database={"dsn": lowly.dsn}))
    step(drain)
    assert "`processor print schema`" in drain.gate.reason
    site.execute(f"grant usage on schema processor to {lowly.name};"
                 f"grant select on all tables in schema processor to {lowly.name};"
                 f"grant insert, update on processor.lane to {lowly.name}")  # fmt: skip
    step(drain)
    assert drain.gate.reason.startswith(
        "the role lacks privileges on"
        " processor.ledger, processor.dead_letter, processor.outbox at ")
    assert "`processor print schema`" in drain.gate.reason
    site.execute(f"grant all on all tables in schema processor to {lowly.name}")
    step(drain)
    assert not drain.gate.is_shut


def test_doctor_judges_schema_retention_pauses_and_dead_letters(cli: Cli, site: Site) -> None:
    cli.use(merged(site.mapping, {"ledger": {"retention": 7200.0}}))
    site.start()
    poison(site)
    cli("queues", "pause", "low")
    found = {(r["section"], r["check"]): r for r in cli("doctor", "--json").records}
    assert found["postgresql", "dead letters"]["level"] == "warn"
    assert found["checklist", "dead letters and alerting"]["level"] == "warn"
    assert "forgets an id after 2h" in found["checklist", "repeatable work"]["found"]
    assert found["redis", "queues"]["found"] == "low is paused"
    drain_thread.stop()
    site.execute("update processor.meta set version = 0, newest = 0")
    assert diagnosis(cli, "postgresql", "schema")["level"] == "fail"


def test_doctor_checks_the_other_server_if_one_is_unavailable(cli: Cli, site: Site) -> None:
    cli.use(merged(site.mapping, {"redis": {"url": "redis://127.0.0.1:1/0"}}))
    said = cli("doctor", "--json")
    assert said.code == 69
    found = {(r["section"], r["check"]): r["level"] for r in said.records}
    assert found["redis", "server"] == "fail"
    assert found["postgresql", "session"] == "ok"
    cli.use(merged(site.mapping, {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}))
    said = cli("doctor", "--json")
    assert said.code == 69
    found = {(r["section"], r["check"]): r["level"] for r in said.records}
    assert found["postgresql", "server"] == "fail"
    assert found["redis", "link"] == "ok"


@pytest.mark.parametrize(
    ("apart", "level", "word"),
    [(0.0, "ok", ""), (5.0, "warn", "ahead"), (-5.0, "warn", "behind"), (60.0, "fail", "ahead")],
)
def test_doctor_reports_clocks_that_differ(apart: float, level: str, word: str) -> None:
    found = host.clock("Redis", lambda: time.time() + apart)
    assert found.level == level
    assert word in found.found


def test_doctor_reports_a_password_that_every_user_can_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text("database: {dsn: 'host=x password=y'}")
    path.chmod(0o644)
    levels = {each.check: each.level
              for each in host.settings_and_program(Settings(), str(path))}
    assert levels["secrets"] == "warn"
    path.chmod(0o600)
    levels = {each.check: each.level
              for each in host.settings_and_program(Settings(), str(path))}
    assert levels["secrets"] == "ok"
