"""A real gunicorn with the shipped hook: each lane has one owner, whichever worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.service import settings_of
from tests.harness.wait import wait_until
from tests.harness.web_workers import APPLICATION, WebWorkers

HOOK = Path(__file__).resolve().parents[2] / "etc" / "gunicorn.conf.py"
WORKERS, LANES = 4, 3


@pytest.fixture(params=["", "--preload", "--preload, started at import"])
def site(
    request: pytest.FixtureRequest, spawn: Spawn, database: Database, redis_url: str,
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, free_address: str,
) -> Iterator[WebWorkers]:  # fmt: skip
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
    site = WebWorkers(process, free_address, database, workers=WORKERS, lanes=LANES)
    # All workers must be up, or a late one would not take part in the test.
    site.ask_all("/state")
    yield site
    if process.running:
        process.terminate(30)


def test_every_worker_submits_and_wakes_its_thread_and_each_lane_has_one_owner(
    site: WebWorkers
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
    site: WebWorkers
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


def test_a_terminated_gunicorn_drains_everything_and_leaves_no_session(site: WebWorkers) -> None:
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
