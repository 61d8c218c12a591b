"""The command line as an operator sees it: messages, exit codes, behaviour on a terminal."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import psycopg2
import pytest
import yaml

import processor
from processor.cli import shadow
from processor.cli.doctor import host
from processor.cli.main import SECTIONS
from processor.cli.main import processor as root
from processor.config import loader
from processor.config.settings import Settings
from processor.ledger import schema
from tests.harness.cli import Cli, Program, Role, lines
from tests.harness.process import ROOT, Spawn
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until

COMMANDS = [name for section in SECTIONS.values() for name in section]


def every_command(group: click.Group, path: str = "") -> dict[str, click.Command]:
    """All commands that are not groups, by what an operator types."""
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        typed = f"{path} {name}".strip()
        found |= every_command(command, typed) if isinstance(command, click.Group) else {
            typed: command
        }
    return found


def test_help_imports_no_command_no_driver_and_no_yaml() -> None:
    code = (
        "import sys; from processor.cli.main import main; main(['--help']); print(sorted("
        "{'yaml', 'redis', 'psycopg2', 'msgspec', 'rich', 'processor.cli.commands.status'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert done.stderr.strip() == "[]"
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("typed", sorted(every_command(root)))
def test_every_command_has_help(cli: Cli, typed: str) -> None:
    said = cli(*typed.split(), "--help")
    assert said.code == 0
    assert said.lines[2].strip().endswith((".", ":")) or len(said.lines) > 4
    assert "-c, --config FILE" in said.out


def test_every_command_that_prints_data_has_json() -> None:
    # `print` and `init-db --print` print files, and `run` prints nothing.
    wanted = {"status", "submit", "queues list", "dead list", "dead show", "dead retry",
              "dead discard", "dead edit", "explain", "verify", "doctor", "check-config"}
    have = {typed for typed, command in every_command(root).items()
            if any("--json" in each.opts for each in command.params)}
    assert wanted <= have


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["sta"], {"status", "start"}),
        (["queues", ""], {"list", "pause", "resume"}),
        (["queues", "re"], {"resume"}),
        (["status", "--js"], {"--json"}),
        (["print", "completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_options_and_values(
    typed: list[str], completed: set[str], tmp_path: Path
) -> None:
    """The printed script is read by a real bash, which calls its function as on the key Tab."""
    words = " ".join(f"'{word}'" for word in ["processor", *typed])
    program = tmp_path / "processor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m processor "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(processor print completion bash)"
        COMP_WORDS=({words}); COMP_CWORD={len(typed)}; COMPREPLY=()
        _processor_completion processor; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert set(done.stdout.split()) == completed, done.stderr


def test_without_a_command_the_help_is_shown_as_a_usage_error(cli: Cli) -> None:
    said = cli()
    assert said.code == 2
    assert not said.out
    assert "submit" in said.err


def test_the_version_includes_the_path_of_the_program(cli: Cli) -> None:
    said = cli("--version")
    assert said.out == f"processor {processor.__version__} from {ROOT / 'processor'}\n"


@pytest.mark.parametrize("place", ["before", "behind"])
def test_the_settings_may_be_named_before_or_behind_the_command(
    cli: Cli, tmp_path: Path, place: str
) -> None:
    path = tmp_path / "its.yml"
    path.write_text("site: here")
    head, tail = (["-c", str(path)], []) if place == "before" else ([], ["-c", str(path)])
    said = cli(*head, "check-config", "--show", *tail)
    assert "site: here\n" in said.out


def test_a_reader_that_closes_the_pipe_causes_no_traceback(program: Program) -> None:
    process = program("print", "config")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_full_disk_behind_stdout_is_one_line_of_error(program: Program) -> None:
    with open("/dev/full", "wb") as full:
        process = program("print", "config", stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == b"processor: output: No space left on device\n"


def test_a_closed_stdout_is_harmless(program: Program) -> None:
    process = program("check-config", preexec_fn=lambda: os.close(1))
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"processor: the settings are valid\n")


def test_ctrl_c_is_quiet(program: Program, redis_url: str) -> None:
    environ = os.environ | {"PROCESSOR_REDIS_URL": redis_url}
    process = program("submit", "-", env=environ)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines(1).encode())
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr is not None
    # In the middle of a chunk it reports how far it got; it never prints a traceback.
    assert re.fullmatch(rb"(processor: interrupted: .*\n)?", process.stderr.read())


def by_script() -> list[str]:
    """The code of the installed script, without an installation."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    target = parser["options.entry_points"]["console_scripts"].partition("processor = ")[2]
    module, _, function = target.strip().partition(":")
    return ["-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


@pytest.mark.parametrize("module", ["click", "redis", "msgspec"])
@pytest.mark.parametrize("start", [["-m", "processor"], by_script()], ids=["module", "script"])
def test_ctrl_c_is_quiet_while_modules_are_loaded(
    tmp_path: Path, start: list[str], module: str
) -> None:
    """Also if the import swallows the interrupt, as a callback of the import system does."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('swallowed')\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *start, "status"], capture_output=True, text=True, env=environ,
        cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_that_the_caller_ignores_is_ignored_while_modules_are_loaded() -> None:
    """A caller such as `nohup`, or a script for its background jobs, ignores SIGINT."""
    ignoring = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    code = f"{ignoring}; import sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, "-c",
         "import os, signal; from processor.cli.interrupt import InterruptGuard\n"
         "with InterruptGuard(): os.kill(os.getpid(), signal.SIGINT)\n"
         "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"


def test_an_argument_that_is_not_text_is_escaped_in_the_message(program: Program) -> None:
    process = program(b"ex\xffplain\x1b[31m")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err.startswith(b"processor: no such command: ex\\udcffplain\\x1b[31m (")
    assert err.count(b"\n") == 1


# A module of the user's that shadows the package.


def test_a_processor_py_that_shadows_the_package_is_reported_with_both_paths(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "processor.py").write_text("raise SystemExit('the wrong one')")
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    process = program("check-config", cwd=tmp_path, env=environ)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    first, second = err.decode().splitlines()
    assert str(tmp_path / "processor.py") in first
    assert str(ROOT / "processor") in first
    assert second == "processor: the settings are valid"


def test_doctor_finds_a_processor_py_that_shadows_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "processor.py").touch()
    monkeypatch.chdir(tmp_path)
    (found,) = (each for each in host.settings_and_program(Settings(), None)
                if each.check == "shadow")
    assert found.level == "fail"
    assert str(tmp_path / "processor.py") in found.found
    monkeypatch.chdir(ROOT)
    assert shadow.warning() is None


# check-config, init-db, print


def test_valid_settings_are_shown_without_passwords(cli: Cli) -> None:
    cli.use({"database": {"dsn": "postgresql://me:canary@db/app"}})
    assert cli("check-config").code == 0
    for form in ("--show", "--json"):
        said = cli("check-config", form)
        assert "canary" not in said.out
        assert "postgresql://me:****@db/app" in said.out


def test_settings_beyond_the_time_limits_of_the_unit_are_refused(cli: Cli, tmp_path: Path) -> None:
    cli.use({"database": {"call_timeout": 45.0}})
    assert cli("check-config").code == 0
    unit = tmp_path / "its.service"
    unit.write_text("[Service]\nWatchdogSec=30s\nTimeoutStopSec=20\n")
    said = cli("check-config", "--unit", str(unit))
    assert said.code == 78
    assert "database.call_timeout: 45 must be below WatchdogSec=30" in said.err
    assert "stop_timeout: 25 must be below TimeoutStopSec=20" in said.err
    unit.write_text("[Service]\nWatchdogSec=1min 30s\nTimeoutStopSec=infinity\n")
    assert cli("check-config", "--unit", str(unit)).code == 0


def test_init_db_creates_the_schema_and_may_run_again(cli: Cli, database: Any) -> None:
    cli.use({"database": {"dsn": database.dsn}})
    for _ in range(2):
        assert cli("init-db").code == 0
    assert database.execute("select newest from processor.meta") == [(schema.VERSION,)]


def test_init_db_does_not_change_the_schema_of_a_later_release(cli: Cli, database: Any) -> None:
    """Processors of that release call functions that init-db would replace."""
    cli.use({"database": {"dsn": database.dsn}})
    assert cli("init-db").code == 0
    database.execute(
        "update processor.meta set version = 99, oldest = 99, newest = 99;"
        "create or replace function processor.expect_2(met bigint, expected bigint) returns void"
        " language sql as 'select 99'"
    )

    said = cli("init-db", "--upgrade")

    assert (said.code, "version 99" in said.err) == (69, True)
    assert "init-db" not in said.err
    assert database.execute("select processor.version()") == [(99,)]
    source = "select prosrc from pg_proc where proname = 'expect_2'"
    assert database.execute(source) == [("select 99",)]


def test_init_db_without_privileges_names_the_role_the_database_and_the_owner(
    cli: Cli, site: Site, lowly: Role
) -> None:
    cli.use(merged(site.mapping, {"database": {"dsn": lowly.dsn}}))
    name, owner = site.execute("select current_database(), current_user")[0]
    who = f"role {lowly.name} may not"
    where = f"schema processor in database {name} at "

    site.execute(f"drop schema processor cascade; {schema.MIGRATIONS[0]}")
    site.execute(f"grant usage on schema processor to {lowly.name};"
                 f"grant select on processor.meta to {lowly.name}")  # fmt: skip
    said = cli("init-db", "--upgrade")
    assert said.code == 69
    assert said.error.startswith(f"{who} upgrade {where}")
    assert said.error.endswith(f"its owner, {owner} (see PROCESSOR_ADMIN_DSN)")

    site.execute("drop schema processor cascade")
    said = cli("init-db")
    assert said.code == 69
    assert said.error.startswith(f"{who} create {where}")
    assert "with a role that may create schemas (see PROCESSOR_ADMIN_DSN)" in said.error


def test_init_db_that_meets_a_lock_does_not_suggest_another_role(cli: Cli, site: Site) -> None:
    cli.use(site.mapping)
    site.execute(f"drop schema processor cascade; {schema.MIGRATIONS[0]}")
    with closing(psycopg2.connect(site.dsn)) as other, other.cursor() as cursor:
        cursor.execute("lock table processor.dead_letter in access exclusive mode")
        said = cli("init-db", "--upgrade")
    assert said.code == 69
    assert " cannot upgrade schema processor in database " in said.error
    assert said.error.endswith(": SQLSTATE 55P03")


def test_the_sql_that_init_db_prints_creates_the_schema(cli: Cli, database: Any) -> None:
    said = cli("init-db", "--print")
    assert said.code == 0
    name = f"printed_{os.getpid()}"
    text = said.out.replace("ROLE processor ", f"ROLE {name} ")
    text = text.replace("TO processor;", f"TO {name};")
    try:
        database.execute(text)
        assert database.execute("select newest from processor.meta") == [(schema.VERSION,)]
        assert "+xadd" in said.out
    finally:
        database.execute(f"drop owned by {name}; drop role {name}")


def test_the_printed_unit_calls_this_program_and_the_printed_sample_is_valid(
    cli: Cli, tmp_path: Path
) -> None:
    unit = cli("print", "unit")
    assert f"ExecStart={sys.executable} -m processor run -c " in unit.out
    assert "/usr/bin/processor" not in unit.out
    assert "%i" in cli("print", "unit", "--instances").out
    sample = tmp_path / "sample.yml"
    sample.write_text(cli("print", "config").out)
    assert loader.load(sample, {}) == Settings()
    assert cli("print", "schema").out == f"{schema.DDL}\n{schema.ROLE}"


# run, start, stop, reload


@pytest.fixture
def settings_file(site: Site, tmp_path: Path) -> Path:
    path = tmp_path / "processor.yml"
    path.write_text(yaml.safe_dump(site.mapping))
    return path


def test_run_drains_until_sigterm(
    spawn: Spawn, site: Site, settings_file: Path
) -> None:
    process = spawn("-m", "processor", "run", "-c", str(settings_file), cwd=ROOT)
    site.submit(write(1))
    site.commits(1)
    assert process.terminate(20) == 0


def test_a_daemon_is_started_reloaded_and_stopped(
    cli: Cli, spawn: Spawn, site: Site, settings_file: Path, tmp_path: Path
) -> None:
    head = ["-c", str(settings_file)]
    pidfile = ["--pidfile", str(tmp_path / "p.pid")]
    said = cli("stop", *head, *pidfile)
    assert said.code == 1
    assert said.error.startswith("no processor is running: ")
    log = ["--log-file", str(tmp_path / "log")]
    # `spawn` ends the daemon too if the test ends first.
    process = spawn("-m", "processor", "start", *head, *pidfile, *log, cwd=ROOT)
    assert process.wait(30) == 0, process.output
    assert process.output.startswith("processor: started, pid ")
    site.submit(write(1))
    site.commits(1)
    assert cli("reload", *head, *pidfile).code == 0
    wait_until(lambda: "reloaded" in (tmp_path / "log").read_text())
    said = cli("stop", *head, *pidfile)
    assert (said.code, said.out) == (0, "")
    assert said.error.startswith("stopped, pid ")
    assert not spawn.left()
