"""With `log.level: debug` a processor logs what it does, package by package."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness import workload
from tests.harness.process import Process, Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until
from tests.harness.workload import Site, plain

PROGRAM = """
import json, sys
from processor.config import loader
from processor.service import foreground

sys.exit(foreground.run(loader.load(json.loads(sys.argv[1]))))
"""
SECRET = "no-log-shows-this"


@pytest.fixture
def site(database: Database, redis_url: str) -> Iterator[Site]:
    yield from workload.sites(redis_url, workload.prepare(database))


@pytest.fixture
def run(spawn: Spawn, site: Site) -> Callable[[str], Process]:
    def start(level: str) -> Process:
        log = {"level": level, "format": "json"}
        quiet = {"interval": 20.0, "database": {"dsn": site.database.dsn, "takeover": 60.0}}
        process = spawn(PROGRAM, json.dumps(site.mapping | quiet | {"log": log}))
        wait_until(lambda: "started: " in process.output, message=lambda: process.output)
        return process

    return start


def messages(process: Process) -> dict[tuple[str, str], list[str]]:
    """The logged messages by level and logger."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in process.lines:
        record: dict[str, Any] = json.loads(line)
        found[record["level"], record["logger"]].append(record["message"])
    return found


def test_debug_shows_connections_passes_and_the_doorbell_and_never_a_value(
    run: Callable[[str], Process], site: Site
) -> None:
    other = run("debug")
    wait_until(lambda: any("running" in line for line in other.lines))
    process = run("debug")
    site.submit([plain(SECRET)])
    wait_until(lambda: site.redis.xlen(site.lane.stream) == 0)

    assert process.terminate(20) == 0
    assert other.terminate(20) == 0

    owner, standby = messages(other), messages(process)
    connected = "\n".join(owner["debug", "processor.connections"])
    assert "connected to Redis at " in connected
    assert "connected to PostgreSQL at " in connected
    runtime = "\n".join(owner["debug", "processor.runtime"])
    assert "pass: 1 committed in 1 batches, " in runtime
    assert "doorbell: another process added an entry to " in runtime
    assert any("another processor owns it" in line
               for line in standby["debug", "processor.ownership"])
    assert SECRET not in other.output + process.output


def test_info_shows_no_debug_lines(run: Callable[[str], Process]) -> None:
    process = run("info")

    assert process.terminate(20) == 0
    assert not [level for level, _ in messages(process) if level == "debug"]


def test_debug_shows_the_probes_of_an_outage(run: Callable[[str], Process], site: Site) -> None:
    process = run("debug")
    site.database.execute("alter schema processor rename to hidden")
    site.database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name like 'processor %'"
    )
    site.submit([plain()])
    wait_until(lambda: "outage continues: " in process.output, message=lambda: process.output)
    site.database.execute("alter schema hidden rename to processor")
    wait_until(lambda: "outage over" in process.output, message=lambda: process.output)

    assert process.terminate(20) == 0
    assert "outage: probing the servers" in messages(process)["debug", "processor.drain"]


def test_debug_shows_how_a_receipt_is_answered(spawn: Spawn, site: Site) -> None:
    process = spawn("""
import json, logging, sys
import processor

logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stdout)
processor.configure(json.loads(sys.argv[1]))
transaction = processor.Transaction()
transaction.insert("effect", {"id": transaction.id, "part": 0})
receipt = processor.submit(transaction)
processor.start()
assert receipt.wait(timeout=10).state == "committed"
processor.stop()
""", json.dumps(site.mapping))  # fmt: skip

    assert process.wait(30) == 0, process.output
    assert "processor.receipts: reading commit notes" in process.output
