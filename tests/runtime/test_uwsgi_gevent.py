"""Servers that fork without telling Python, or replace its threads: uWSGI, and gevent.

Rule 110."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.service import settings_of
from tests.harness.wait import wait_until
from tests.harness.web_workers import APPLICATION, WebWorkers

WORKERS, LANES = 2, 3
#: uWSGI starts itself again with this interpreter when it reloads.
UWSGI = (str(Path(sys.executable).with_name("pyuwsgi")), "--binary-path", sys.executable,
         "--master", "--die-on-term", "--module", "app", "--http-socket")  # fmt: skip
GUNICORN = (sys.executable, "-m", "gunicorn", "app", "-k", "gevent", "-b")


def soak(server: str) -> object:
    return pytest.param(server, marks=pytest.mark.soak)


@pytest.fixture(
    params=[
        "pyuwsgi: --enable-threads --threads 2",
        soak("pyuwsgi: --enable-threads"),
        soak("pyuwsgi: --enable-threads --threads 2 --lazy-apps"),
        soak("pyuwsgi: --enable-threads --threads 2 --py-call-osafterfork"),
        soak("pyuwsgi: --enable-threads --threads 2 --py-call-uwsgi-fork-hooks"),
        "gevent: --preload",
        soak("gevent: --name without-preload"),
    ]
)
def workers(
    request: pytest.FixtureRequest, spawn: Spawn, database: Database, redis_url: str,
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, free_address: str,
) -> WebWorkers:  # fmt: skip
    """The application calls `processor.start()` at import."""
    package, _, options = request.param.partition(": ")
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: it has no wheel for this Python")
    database.execute("create table effect (n int)")
    (tmp_path / "app.py").write_text(APPLICATION)
    # So long that no interval ends within the test.
    settings = settings_of(redis_url, database.dsn, {"interval": 30.0})
    (tmp_path / "processor.yml").write_text(yaml.safe_dump(settings))
    server = UWSGI if package == "pyuwsgi" else GUNICORN
    # gunicorn creates a socket in the home directory, whose path must be short.
    home = str(tmp_path_factory.mktemp("g"))
    process = spawn.command(
        [*server, free_address, "--workers", str(WORKERS), *options.split()], cwd=tmp_path,
        SETTINGS=str(tmp_path / "processor.yml"), START_AT_IMPORT="1", HOME=home,
        XDG_RUNTIME_DIR=home,
    )  # fmt: skip
    return WebWorkers(process, free_address, database, workers=WORKERS, lanes=LANES)


def test_each_worker_commits_and_each_lane_has_one_owner_before_and_after_a_reload(
    workers: WebWorkers
) -> None:
    before = workers.ask_all("/commit/1")
    assert {each["commit"] for each in before.values()} == {"committed"}
    wait_until(workers.one_owner_each, 10, lambda: workers.process.output)

    workers.process.send(signal.SIGHUP)
    wait_until(lambda: not workers.living(before), 20, lambda: workers.process.output)

    after = workers.ask_all("/commit/2")
    assert {each["commit"] for each in after.values()} == {"committed"}
    assert workers.process.terminate(10) == 0
    wait_until(lambda: not workers.holders())
    assert "Traceback" not in workers.process.output


def test_uwsgi_without_threads_is_refused_with_the_option(spawn: Spawn) -> None:
    """Current releases always have threads; this is what the older ones show an application."""
    program = spawn("""
import sys, types
import processor

sys.modules["uwsgi"] = types.SimpleNamespace(
    has_threads=0, worker_id=lambda: 1, mule_id=lambda: 0, i_am_the_spooler=lambda: False
)
try:
    processor.start()
except processor.ConfigError as error:
    print(error)
""")

    assert program.wait() == 0, program.output
    assert "enable-threads" in program.output
