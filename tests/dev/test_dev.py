"""`processor dev` as a developer uses it: servers that keep their data in the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processor.config import loader
from processor.dev import environment
from processor.dev.home import NAME, Addresses, Home
from processor.embedded import guardian
from processor.errors import AlreadyRunning, ConfigError
from tests.harness.process import Process, Spawn
from tests.harness.wait import wait_until

SQL = """\
create table account (id int primary key, balance numeric not null default 0);
insert into account values (7, 0);
"""
ADD = """\
import processor
add = processor.Transaction().update("account", add={"balance": 5}, where={"id": 7}, expect=1)
print(processor.submit(add).wait(timeout=10).state)
"""
BALANCE = """\
import os, psycopg2
with psycopg2.connect(os.environ["DATABASE_URL"]) as session, session.cursor() as cursor:
    cursor.execute("select balance from account")
    print("balance", cursor.fetchone()[0])
"""
DEV = ("-m", "processor", "dev")
# A development machine that also reaches production.
PRODUCTION = {
    "PROCESSOR_REDIS_URL": "redis://127.0.0.1:1/0",
    "PROCESSOR_DATABASE_DSN": "postgresql://127.0.0.1:1/app",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "DATABASE_URL": "postgresql://127.0.0.1:1/app",
    "PROCESSOR_HEALTH_BIND": "",
}


@pytest.fixture
def project(spawn: Spawn) -> Iterator[Path]:
    """A project's directory, which also PostgreSQL's user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="dev-"))
    directory.chmod(0o755)
    (directory / "tables.sql").write_text(SQL)
    yield directory
    for process in guardian.processes(directory, ("postgres", "valkey-server", "redis-server")):
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(directory)


@pytest.fixture
def dev(spawn: Spawn, project: Path) -> Callable[..., Process]:
    """Start `processor dev` in the project."""

    def start(*arguments: str, **environ: str) -> Process:
        return spawn(*DEV, *arguments, cwd=project, **PRODUCTION | environ)

    return start


def python(code: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", code)


def test_a_command_runs_with_the_servers_and_its_rows_are_still_there_in_the_next_run(
    dev: Callable[..., Process], project: Path
) -> None:
    first = dev("--sql", "tables.sql", *python(ADD))
    assert first.wait(60) == 0, first.output
    assert first.lines[-1] == "committed"

    second = dev("--sql", "tables.sql", *python(BALANCE))
    assert second.wait(60) == 0, second.output
    assert second.lines[-1] == "balance 5"
    assert (project / NAME / ".gitignore").read_text() == "*\n"

    third = dev("--reset", "--sql", "tables.sql", *python(BALANCE))
    assert third.wait(60) == 0, third.output
    assert third.lines[-1] == "balance 0"


def test_what_a_command_submitted_is_committed_before_the_servers_stop(
    dev: Callable[..., Process]
) -> None:
    many = """\
import processor
for _ in range(500):
    processor.submit(processor.Transaction().update("account", add={"balance": 1}, where={"id": 7}))
"""
    first = dev("--sql", "tables.sql", *python(many))
    assert first.wait(60) == 0, first.output

    second = dev(*python(BALANCE))
    assert second.wait(60) == 0, second.output
    assert second.lines[-1] == "balance 500"


def test_the_exit_code_is_that_of_the_command(dev: Callable[..., Process]) -> None:
    script = "exit 7"
    assert dev("--", "sh", "-c", script).wait(60) == 7
    missing = dev("--", "no-such-program")
    assert missing.wait(60) == 127
    assert "no-such-program: No such file or directory" in missing.output


def test_a_second_shell_uses_the_servers_of_the_first_which_stop_on_ctrl_c(
    dev: Callable[..., Process], project: Path
) -> None:
    running = dev("--sql", "tables.sql")
    exported = running.expect("export ", 60)
    running.expect("started", 20)

    assert dev("--env").wait(20) == 0
    printed = dev("--env")
    assert printed.wait(20) == 0
    assert printed.lines == [exported]
    script = 'eval "$1"; exec "$2" -c "$3"'
    shell = dev("--", "sh", "-c", script, "sh", exported, sys.executable, ADD)
    assert shell.wait(30) == 0, shell.output
    assert shell.lines == ["committed"]

    again = dev()
    assert again.wait(20) == 1
    assert again.lines == [
        f"processor: the servers in {project / NAME} are already running (pid {running.pid}): "
        "run a command with them: processor dev -- COMMAND"
    ]
    reset = dev("--reset")
    assert reset.wait(20) == 1
    assert "stop that `processor dev` first" in reset.output

    running.send(signal.SIGINT)
    assert running.wait(30) == 0, running.output
    assert not guardian.processes(project, ("postgres", "valkey-server"))


def test_after_a_kill_the_servers_end_and_the_next_run_has_the_data(
    dev: Callable[..., Process], project: Path
) -> None:
    running = dev("--sql", "tables.sql")
    running.expect("started", 60)
    add = dev(*python(ADD))
    assert add.wait(30) == 0, add.output

    running.kill()
    wait_until(lambda: not guardian.processes(project, ("postgres", "valkey-server")))

    after = dev(*python(BALANCE))
    assert after.wait(60) == 0, after.output
    assert after.lines[-1] == "balance 5"


def test_a_file_of_sql_that_fails_leaves_no_half_database(
    dev: Callable[..., Process], project: Path
) -> None:
    (project / "broken.sql").write_text(SQL + "create table account (id int);\n")
    broken = dev("--sql", "broken.sql", "--", "true")
    assert broken.wait(60) == 1
    assert re.search(r"broken.sql: .*account.* already exists", broken.output), broken.output

    mended = dev("--sql", "tables.sql", *python(BALANCE))
    assert mended.wait(60) == 0, mended.output
    assert mended.lines[-1] == "balance 0"


def test_without_running_servers_env_names_the_command_that_starts_them(
    dev: Callable[..., Process], project: Path
) -> None:
    printed = dev("--env")
    assert printed.wait(20) == 1
    assert printed.lines == [
        f"processor: no servers run in {project / NAME}: start them: processor dev"
    ]
    assert not (project / NAME).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root cannot run PostgreSQL as itself")
def test_root_may_use_a_directory_that_is_closed_to_others(
    dev: Callable[..., Process], project: Path
) -> None:
    project.chmod(0o700)
    first = dev("--sql", "tables.sql", *python(ADD))
    elsewhere = (project / NAME).resolve()
    try:
        assert first.wait(60) == 0, first.output
        elsewhere = (project / NAME).resolve()
        assert (project / NAME).is_symlink()
        second = dev(*python(BALANCE))
        assert second.wait(60) == 0, second.output
        assert second.lines[-1] == "balance 5"
    finally:
        if elsewhere != project / NAME:
            shutil.rmtree(elsewhere)


# The directory.


def test_a_directory_of_this_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine").write_text("kept")
    for use in (Home(tmp_path).__enter__, Home(tmp_path).empty):
        with pytest.raises(ConfigError, match="was not created by `processor dev`"):
            use()
    assert (tmp_path / NAME / "mine").read_text() == "kept"


def test_the_ports_stay_the_same_while_they_are_free(project: Path) -> None:
    with Home(project) as home:
        first = home.choose_addresses()
        assert home.choose_addresses() == first
        assert home.addresses() == first
        (home.path / "addresses.json").write_text(json.dumps({"redis_port": "x"}))
        with pytest.raises(ConfigError, match="cannot be read"):
            home.addresses()
        with pytest.raises(AlreadyRunning, match="are running"):
            Home(project).empty()


def test_the_replicas_of_the_settings_are_not_used_in_development() -> None:
    addresses = Addresses(1, 2)
    settings = loader.load({"replicas": {"servers": {"near": "postgresql://db1/app"}}}, {})
    chosen = environment.variables(addresses, settings)
    before = {"PROCESSOR_REDIS_URL": "redis://production", "HOME": "x"}
    environ = environment.applied(before, chosen)

    loaded = loader.load(None, environ)

    assert environ["HOME"] == "x"
    assert loaded.redis.url == addresses.redis
    assert loaded.database.dsn == addresses.database
    assert loaded.replicas.servers == {}
    assert subprocess.check_output(
        ["sh", "-c", f'{environment.exports(chosen)}; echo "$REDIS_URL $DATABASE_URL"'], text=True
    ).split() == [addresses.redis, addresses.database]
