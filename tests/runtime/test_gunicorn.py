"""A real gunicorn with the shipped hook: each lane has one owner, whichever worker dies."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.process import Process, Spawn
from tests.harness.servers import Database
from tests.harness.service import settings_of
from tests.harness.wait import wait_until

HOOK = Path(__file__).resolve().parents[2] / "etc" / "gunicorn.conf.py"
WORKERS, LANES = 4, 3

APPLICATION = '''
import json, os, time
import processor
from processor import web
from processor.telemetry import metrics

processor.configure(os.environ["SETTINGS"])
if os.environ.get("START_AT_IMPORT"):
    processor.start()


def submit(n):
    processor.submit(processor.Transaction().insert("effect", {"n": int(n)}))


def ring(_):
    """Whether setting the Event in this worker makes its thread run a pass at once."""
    before, end = metrics.value("passes"), time.monotonic() + 5.0
    processor.event.set()
    while metrics.value("passes") == before and time.monotonic() < end:
        time.sleep(0.005)
    return metrics.value("passes") > before


def state(_):
    return processor.state()


def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/health"):
        return web.application(environ, start_response)
    time.sleep(0.02)  # so that many requests are spread over all workers
    verb, _, argument = environ["PATH_INFO"].strip("/").partition("/")
    answer = {"pid": os.getpid(), verb: globals()[verb](argument)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
'''


class Site:
    """The application under gunicorn."""

    def __init__(self, process: Process, port: int, database: Database) -> None:
        self.process, self.port, self.database = process, port, database

    def get(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return json.loads(answer.read())
        finally:
            connection.close()

    def ask_all(self, path: str) -> dict[int, dict[str, Any]]:
        """The answers of all workers, by pid."""
        received: dict[int, dict[str, Any]] = {}

        def enough() -> bool:
            with ThreadPoolExecutor(WORKERS * 2) as pool:
                answers = list(pool.map(self.get, [path] * WORKERS * 2))
            received.update({each["pid"]: each for each in answers})
            return len(self.living(received)) >= WORKERS

        wait_until(enough, 20, lambda: self.process.output, ignore=OSError)
        return self.living(received)

    @staticmethod
    def living(answers: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {pid: each for pid, each in answers.items() if Path(f"/proc/{pid}").exists()}

    def owners(self) -> dict[str, list[int]]:
        """The workers that report to own a lane, by lane."""
        owners: dict[str, list[int]] = {}
        for pid, each in self.ask_all("/state").items():
            for name, lane in each["state"]["lanes"].items():
                owners.setdefault(name, []).extend([pid] if lane["owner"] else [])
        return owners

    def one_owner_each(self) -> bool:
        """Whether every lane has one owner: a worker that reports it, or gunicorn's own process."""
        owners = list(itertools.chain(*self.owners().values()))
        owners += [pid for pid in self.holders() if pid == self.process.pid]
        return len(owners) == LANES and sorted(owners) == sorted(self.holders())

    def holders(self) -> list[int]:
        """The processes whose sessions hold a lane in PostgreSQL, one for each lane held."""
        return [int(row[0].split(":")[-2]) for row in self.database.execute(
            "select application_name from pg_locks join pg_stat_activity using (pid)"
            " where locktype = 'advisory' and application_name like 'processor %'"
            " and datname = current_database()")]  # fmt: skip

    def submit(self, numbers: range) -> set[int]:
        """Submit through the workers; return the pids of those that accepted any."""
        with ThreadPoolExecutor(WORKERS * 2) as pool:
            return {each["pid"] for each in pool.map(self.get, [f"/submit/{n}" for n in numbers])}

    def effects(self) -> list[int]:
        return [row[0] for row in self.database.execute("select n from effect order by n")]


@pytest.fixture(params=["", "--preload", "--preload, started at import"])
def site(
    request: pytest.FixtureRequest, spawn: Spawn, database: Database, redis_url: str,
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, free_address: str,
) -> Iterator[Site]:  # fmt: skip
    mode = request.param
    database.execute("create table effect (n int)")
    (tmp_path / "app.py").write_text(APPLICATION)
    # So long that no interval ends and no lane is taken over by time within these tests.
    settings = settings_of(redis_url, database.dsn, {"interval": 30.0})
    (tmp_path / "processor.yml").write_text(yaml.safe_dump(settings))
    # gunicorn creates a socket in the home directory, whose path must be short.
    environ = {"SETTINGS": str(tmp_path / "processor.yml"),
               "HOME": str(tmp_path_factory.mktemp("g"))}  # fmt: skip
    environ["XDG_RUNTIME_DIR"] = environ["HOME"]
    if "import" in mode:
        environ["START_AT_IMPORT"] = "1"
    process = spawn(
        "-m", "gunicorn", "-c", str(HOOK), "-b", free_address, "-w", str(WORKERS),
        *(["--preload"] if "--preload" in mode else []), "app:application", cwd=tmp_path, **environ,
    )  # fmt: skip
    site = Site(process, int(free_address.rpartition(":")[2]), database)
    # All workers must be up, or a late one would not take part in the test.
    site.ask_all("/state")
    yield site
    if process.running:
        process.terminate(30)


def test_every_worker_submits_and_wakes_its_thread_and_each_lane_has_one_owner(
    site: Site
) -> None:
    wait_until(lambda: len(site.holders()) == LANES)
    took = site.submit(range(200))

    wait_until(lambda: len(site.effects()) >= 200, message=lambda: site.process.output)
    assert site.effects() == list(range(200))
    assert len(took) == WORKERS
    assert [each["ring"] for each in site.ask_all("/ring").values()] == [True] * WORKERS
    assert len(site.holders()) == LANES
    wait_until(site.one_owner_each)


def test_another_worker_takes_over_when_the_owner_is_killed_and_nothing_is_lost_or_doubled(
    site: Site
) -> None:
    wait_until(lambda: len(site.holders()) == LANES)
    site.submit(range(50))
    # If gunicorn's own process took the lanes first, all workers are standbys.
    owner = next((pid for pid in site.holders() if pid != site.process.pid),
                 min(site.ask_all("/state")))  # fmt: skip

    os.kill(owner, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{owner}").exists())
    site.submit(range(50, 100))

    wait_until(lambda: len(site.effects()) >= 100, message=lambda: site.process.output)
    assert site.effects() == list(range(100))
    wait_until(lambda: owner not in site.holders() and site.one_owner_each())


def test_a_terminated_gunicorn_drains_everything_and_leaves_no_session(site: Site) -> None:
    wait_until(lambda: len(site.holders()) == LANES)
    site.submit(range(20))

    assert site.process.terminate(30) == 0

    left = (
        "select count(*) from pg_stat_activity where application_name like 'processor %'"
        " and datname = current_database()"
    )
    # The server needs a moment to notice that a client has disconnected.
    wait_until(lambda: site.database.execute(left) == [(0,)])
    assert "Traceback" not in site.process.output
