"""The classic daemon: start, stop, reload, and a pidfile that cannot be misused."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import processor
from processor.config.loader import configure
from processor.errors import AlreadyRunning, ConfigError
from processor.service import pidfile
from processor.service.pidfile import Pidfile
from tests.harness.process import Process, Spawn
from tests.harness.service import HOLD, Database, settings_of
from tests.harness.wait import wait_until

# Calls the daemon as the command line does; an error is one line and an exit code.
PROGRAM = """
import os, sys, time
from processor.config import loader
from processor.runtime import drain_thread
from processor.service import daemon
from processor.errors import ConfigError, ProcessorError

{hooks}

verb, path, pidfile, log = sys.argv[1:]
try:
    settings = loader.load(path)
    if verb == "start":
        print("pid", daemon.start(settings, path, pidfile=pidfile, log_file=log))
    else:
        print("pid", getattr(daemon, verb)(settings, pidfile=pidfile))
except ProcessorError as error:
    print(type(error).__name__, error)
    sys.exit(78 if isinstance(error, ConfigError) else 1)
"""


class Daemon:
    """The command, and the daemon that it starts."""

    def __init__(self, spawn: Spawn, directory: Path, path: Path, database: Database) -> None:
        self._spawn, self._directory = spawn, directory
        self.path, self.database = path, database
        self.pidfile, self.log = directory / "run" / "p.pid", directory / "p.log"
        self.pidfile.parent.mkdir()

    def call(self, verb: str, hooks: str = "", **environ: str) -> Process:
        """Run `processor VERB` to its end."""
        # Relative paths, since the daemon changes its directory.
        arguments = [os.path.relpath(each, self._directory)
                     for each in (self.path, self.pidfile, self.log)]  # fmt: skip
        process = self._spawn(
            PROGRAM.format(hooks=hooks), verb, *arguments, cwd=self._directory, **environ
        )
        process.wait(20)
        return process

    def start(self, hooks: str = "", **environ: str) -> int:
        """Start it successfully; return its pid."""
        process = self.call("start", hooks, **environ)
        assert process.returncode == 0, process.output
        return int(process.output.split()[1])

    def effects(self) -> list[int]:
        return [row[0] for row in self.database.execute("select n from effect order by n")]


@pytest.fixture
def daemon(
    spawn: Spawn, tmp_path: Path, database: Database, redis_url: str
) -> Daemon:
    database.execute("create table effect (n int)")
    path = tmp_path / "processor.yml"
    path.write_text(yaml.safe_dump(settings_of(redis_url, database.dsn, {})))
    configure({"redis": {"url": redis_url}})
    return Daemon(spawn, tmp_path, path, database)


def submit(n: int) -> None:
    processor.submit(
        {"operations": [{"op": "insert", "table": "effect", "values": {"n": n}}]}
    )  # fmt: skip


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_start_returns_when_the_daemon_works_and_stop_when_it_has_ended(daemon: Daemon) -> None:
    pid = daemon.start()
    submit(1)
    wait_until(lambda: daemon.effects() == [1])

    stopped = daemon.call("stop")

    assert (stopped.returncode, stopped.output) == (0, f"pid {pid}\n")
    assert not alive(pid)
    assert not daemon.pidfile.exists()
    assert "stopped" in daemon.log.read_text()


def test_a_daemon_leaves_the_terminal_the_directory_and_all_open_files(daemon: Daemon) -> None:
    pid = daemon.start("opened = open('opened', 'w')")
    status = Path(f"/proc/{pid}/status").read_text()
    files = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]

    assert os.getsid(pid) != os.getsid(0)
    assert os.getsid(pid) != pid  # only a session leader can acquire a terminal
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert "Umask:\t0077" in status
    assert stat.S_IMODE(daemon.pidfile.stat().st_mode) == 0o600
    assert files.count(str(daemon.log)) == 2  # standard output and error
    assert not [each for each in files if "opened" in each or "output-" in each]
    assert daemon.call("stop").returncode == 0


def test_a_second_start_is_refused_and_the_first_daemon_keeps_running(daemon: Daemon) -> None:
    pid = daemon.start()

    again = daemon.call("start")

    assert again.returncode == 1
    assert again.output.startswith(f"AlreadyRunning a processor is already running, pid {pid}")
    assert alive(pid)
    assert daemon.call("stop").returncode == 0


def test_after_a_kill_the_pidfile_is_stale_and_a_start_succeeds(daemon: Daemon) -> None:
    pid = daemon.start()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    assert daemon.pidfile.exists()

    assert daemon.call("stop").output.startswith("NotRunning no processor is running")
    assert daemon.start() != pid
    assert daemon.call("stop").returncode == 0


def test_a_stale_pidfile_with_the_pid_of_another_process_harms_none(
    daemon: Daemon, spawn: Spawn
) -> None:
    bystander = spawn("import time; time.sleep(60)")
    daemon.pidfile.write_text(f"{bystander.pid}\n")

    stopped = daemon.call("stop")

    assert (stopped.returncode, bystander.running) == (1, True)
    assert daemon.start() != bystander.pid
    assert daemon.call("stop").returncode == 0
    assert bystander.running


def test_stop_waits_for_the_current_batch(daemon: Daemon) -> None:
    settings = yaml.safe_load(daemon.path.read_text())
    settings["statements"] = {"slow": "insert into effect select 1 from pg_sleep(3.5)"}
    daemon.path.write_text(yaml.safe_dump(settings))
    pid = daemon.start()
    processor.submit({"operations": [{"op": "statement", "name": "slow"}]})
    wait_until(daemon.database.sleeps)

    assert daemon.call("stop").returncode == 0
    assert not alive(pid)
    assert daemon.effects() == [1]


def test_stop_ends_a_daemon_that_hangs_and_its_log_says_so(
    daemon: Daemon, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    settings = yaml.safe_load(daemon.path.read_text())
    settings |= {"stop_timeout": 0.5}
    settings["database"] |= {"statement_timeout": 0.3, "lock_timeout": 0.1}
    daemon.path.write_text(yaml.safe_dump(settings))
    pid = daemon.start(HOLD.format(path=str(hang)))
    hang.touch()
    wait_until(lambda: "the drain thread is held" in daemon.log.read_text())

    assert daemon.call("stop").returncode == 0
    assert not alive(pid)
    assert "not finished within stop_timeout" in daemon.log.read_text()


def test_stop_is_bounded_and_recommends_kill_9(daemon: Daemon) -> None:
    settings = yaml.safe_load(daemon.path.read_text())
    settings |= {"stop_timeout": 0.5}
    settings["database"] |= {"statement_timeout": 0.3, "lock_timeout": 0.1}
    daemon.path.write_text(yaml.safe_dump(settings))
    pid = daemon.start()
    os.kill(pid, signal.SIGSTOP)

    stopped = daemon.call("stop", "from processor.service import foreground; foreground.CUT = 0.2")

    assert stopped.returncode == 1
    assert f"pid {pid} is still running" in stopped.output
    assert f"kill -9 {pid}" in stopped.output
    os.kill(pid, signal.SIGKILL)


def test_reload_rereads_the_settings_and_reopens_the_log(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.start()
    settings = yaml.safe_load(daemon.path.read_text())
    settings["statements"] = {"add": "insert into effect values (%(n)s)"}
    daemon.path.write_text(yaml.safe_dump(settings))
    daemon.log.rename(tmp_path / "old.log")

    assert daemon.call("reload").returncode == 0

    wait_until(lambda: daemon.log.exists() and "reloaded" in daemon.log.read_text())
    processor.submit({"operations": [{"op": "statement", "name": "add", "params": {"n": 9}}]})
    wait_until(lambda: daemon.effects() == [9])
    assert daemon.call("stop").returncode == 0


def test_reload_reports_wrong_settings_to_the_terminal_and_not_to_the_daemon(
    daemon: Daemon
) -> None:
    pid = daemon.start()
    daemon.path.write_text("intervall: 3\n")

    refused = daemon.call("reload")

    assert refused.returncode == 78
    assert "processor.yml:1: intervall: unknown setting" in refused.output
    assert "reload" not in daemon.log.read_text()
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("verb", ["stop", "reload"])
def test_without_a_daemon_stop_and_reload_fail(verb: str, daemon: Daemon) -> None:
    result = daemon.call(verb)

    assert result.returncode == 1
    assert result.output.startswith("NotRunning no processor is running (checked pidfile ")


def test_the_commands_start_reload_and_stop_a_daemon(daemon: Daemon, spawn: Spawn) -> None:
    def command(verb: str, *options: str) -> Process:
        process = spawn("-m", "processor", "-c", str(daemon.path), verb,
                        "--pidfile", str(daemon.pidfile), *options)  # fmt: skip
        process.wait(20)
        return process

    started = command("start", "--log-file", str(daemon.log))
    pid = int(daemon.pidfile.read_text())
    assert (started.returncode, started.output) == (0, f"processor: started, pid {pid}\n")
    assert command("reload").returncode == 0
    wait_until(lambda: "reloaded" in daemon.log.read_text())

    # Wrong settings do not prevent a stop.
    daemon.path.write_text("intervall: 3\n")
    assert command("reload").returncode == 78
    stopped = command("stop")
    assert (stopped.returncode, stopped.output) == (0, f"processor: stopped, pid {pid}\n")
    assert command("stop").returncode == 1


# Failures are reported to the terminal.


def test_wrong_settings_are_reported_before_the_daemon_is_started(daemon: Daemon) -> None:
    daemon.path.write_text("intervall: 3\n")
    result = daemon.call("start")

    assert result.returncode == 78
    assert "processor.yml:1: intervall: unknown setting" in result.output
    assert not daemon.pidfile.exists()


def test_an_error_after_detaching_is_reported_to_the_terminal(daemon: Daemon) -> None:
    # Only the daemon itself checks its watchdog.
    result = daemon.call("start", NOTIFY_SOCKET="@nobody", WATCHDOG_USEC="1000000")

    assert result.returncode == 78
    assert result.output.startswith("ConfigError database.call_timeout = 30 s must be below")
    assert not daemon.pidfile.exists()


def test_a_daemon_that_dies_while_it_starts_is_reported(daemon: Daemon) -> None:
    result = daemon.call("start", """
def die():
    raise SystemExit

drain_thread.hooks.before_pass.append(die)
""")

    assert result.returncode == 1
    assert "the daemon exited with code 1 while it started" in result.output
    assert not daemon.pidfile.exists()


def test_a_daemon_that_is_killed_while_it_starts_is_reported(daemon: Daemon) -> None:
    result = daemon.call("start", """
drain_thread.hooks.before_pass.append(lambda: os.kill(os.getpid(), 9))
""")

    assert result.returncode == 1
    assert "killed while it started" in result.output


def test_an_unwritable_log_is_reported_before_the_daemon_is_started(daemon: Daemon) -> None:
    daemon.log.mkdir()
    result = daemon.call("start")

    assert result.returncode == 78
    assert "ConfigError log" in result.output
    assert not daemon.pidfile.exists()


def test_an_outage_does_not_prevent_a_start(daemon: Daemon, free_address: str) -> None:
    settings = yaml.safe_load(daemon.path.read_text())
    settings["database"]["dsn"] = f"postgresql://{free_address}/app"
    daemon.path.write_text(yaml.safe_dump(settings))

    pid = daemon.start()

    assert alive(pid)
    assert "outage" in daemon.log.read_text()
    assert daemon.call("stop").returncode == 0


# The pidfile.

Make = Callable[[Path], Any]


@pytest.mark.parametrize(("make", "problem"), [
    (lambda path: path.symlink_to(path.parent / "victim"), "symbolic link"),
    (lambda path: path.symlink_to(path.parent / "nothing"), "symbolic link"),
    (lambda path: os.link(path.parent / "victim", path), "not a regular file"),
    (lambda path: os.mkfifo(path), "not a regular file"),
    (lambda path: path.mkdir(), "directory"),
    (lambda path: path.write_text("root:x:0:0"), "does not contain a process id"),
])  # fmt: skip
def test_an_unsafe_pidfile_is_refused_and_not_changed(
    make: Make, problem: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("important")
    path = tmp_path / "p.pid"
    make(path)
    before = path.lstat()

    with pytest.raises(ConfigError, match=problem):
        Pidfile(path).__enter__()
    with pytest.raises(ConfigError, match=problem):
        Pidfile(path).running()

    assert victim.read_text() == "important"
    assert not (tmp_path / "nothing").exists()
    assert path.lstat().st_ino == before.st_ino


def test_a_pidfile_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    path.touch()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)

    with pytest.raises(ConfigError, match="another user"):
        Pidfile(path).__enter__()


def test_a_pidfile_in_a_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "none" / "p.pid"

    assert Pidfile(path).running() is None
    with pytest.raises(ConfigError, match=f"pidfile {path}: no such directory"):
        Pidfile(path).__enter__()


def test_of_many_simultaneous_starts_one_gets_the_pidfile(tmp_path: Path, spawn: Spawn) -> None:
    code = """
import os, sys, time
from processor.errors import AlreadyRunning
from processor.service.pidfile import Pidfile
try:
    with Pidfile(sys.argv[1]):
        print("held")
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
except AlreadyRunning as error:
    print("refused", error)
"""
    path, enough = tmp_path / "p.pid", tmp_path / "enough"
    many = [spawn(code, str(path), str(enough)) for _ in range(6)]
    wait_until(lambda: all(each.lines for each in many), 20)
    enough.touch()
    for each in many:
        each.wait(20)

    assert sorted(each.output.split()[0] for each in many) == ["held", *["refused"] * 5]
    assert not path.exists()


def test_a_pidfile_that_is_removed_while_it_is_taken_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.pid"
    locked, removed = pidfile._locked, []

    def lock_late(file: int, **options: bool) -> bool:
        if not removed:
            # As its owner does if it ends between our open and our lock.
            removed.append(path.unlink())
        return locked(file, **options)

    monkeypatch.setattr(pidfile, "_locked", lock_late)
    with Pidfile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert Pidfile(path).running() == os.getpid()


def test_checking_the_pidfile_does_not_disturb_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    with Pidfile(path):
        assert Pidfile(path).running() == os.getpid()
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            Pidfile(path).__enter__()
    assert Pidfile(path).running() is None
