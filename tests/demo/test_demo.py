"""`processor demo` as a new user sees it, and the reckoning at its end."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.cli import main
from processor.config.settings import Database as Settings
from processor.connections.postgres_session import PostgresSession as Session
from processor.demo import scenario
from processor.demo.observatory import TABLES, TELESCOPES
from processor.demo.processes import Child
from processor.demo.producers import LINE, acknowledged
from processor.demo.reckoning import Reckoning, Tally, reckon
from processor.demo.screen import curve
from processor.errors import ProcessorError
from processor.ledger.schema import DDL
from processor.telemetry.progress import Progress
from processor.transaction.ids import new_id
from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until

# Settings of a production processor, which the demo must ignore.
PRODUCTION = {
    "PROCESSOR_REDIS_URL": "redis://127.0.0.1:1/0",
    "PROCESSOR_DATABASE_DSN": "postgresql://127.0.0.1:1/app",
    "PROCESSOR_CONFIG": "/nowhere/processor.yml",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "TRANSACTION_BUFFER_SIZE": "1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGSSLMODE": "require",
}
CLOSING = re.compile(r"submitted (\d+)  committed (\d+)  dead (\d+)  lost (\d+)  doubled (\d+)")


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory for temporary directories: short for sockets, open for PostgreSQL's user."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    directory.chmod(0o755)
    yield directory
    # Fails when anything is left in it.
    directory.rmdir()


def test_the_demo_kills_everything_and_loses_and_doubles_nothing(spawn: Spawn, room: Path):
    demo = spawn("-m", "processor", "demo", "--seconds", "6", TMPDIR=str(room), **PRODUCTION)

    assert demo.wait(90) == 0, demo.output
    closing = CLOSING.fullmatch(demo.lines[-1])
    assert closing, demo.output
    submitted, committed, *rest = map(int, closing.groups())
    assert submitted == committed > 1000
    assert rest == [0, 0, 0]
    for sentence in ("kill -9 PostgreSQL", "kill -9 the processor too", "PostgreSQL is back",
                     "in the middle of its batches", "commits resume after",
                     "read at once from the replica: 3 stars, source buffer",
                     "the same row now: 3 stars, source summit"):  # fmt: skip
        assert sentence in demo.output
    assert spawn.left() == []
    wait_until(lambda: not os.listdir(room), 5, "the directories are removed")


ON_A_TERMINAL = """\
    import os, pty, sys
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "processor", "demo"])
    seen = b""
    while b"three telescopes" not in seen:
        seen += os.read(terminal, 65536)
    os.write(terminal, b"\\x03")
    try:
        while more := os.read(terminal, 65536):
            seen += more
    except OSError:
        pass
    print(seen.decode(), flush=True)
    print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_ctrl_c_ends_the_live_screen_and_leaves_nothing(spawn: Spawn, room: Path):
    terminal = spawn(ON_A_TERMINAL, TMPDIR=str(room), TERM="xterm-256color")

    assert terminal.expect("code", 60) == "code 130", terminal.output
    assert "accepted" in terminal.output
    assert "╭─ processor demo" in terminal.output
    assert "Traceback" not in terminal.output
    assert terminal.output.rstrip().rpartition("\x1b[?25")[2].startswith("h"), "cursor is back"
    wait_until(lambda: not spawn.left(), 5, "all its processes have ended")
    wait_until(lambda: not os.listdir(room), 5, "the directories are removed")


def test_a_killed_demo_leaves_neither_process_nor_directory(spawn: Spawn, room: Path):
    demo = spawn("-m", "processor", "demo", TMPDIR=str(room))
    demo.expect("committed", 60)
    demo.expect("three telescopes", 60)

    demo.send(signal.SIGKILL)

    wait_until(lambda: not spawn.left(), 15, lambda: f"left: {spawn.left()}")
    wait_until(lambda: not os.listdir(room), 15, "the directories are removed")


def test_a_child_that_exits_unexpectedly_is_an_error_with_the_end_of_its_log(tmp_path):
    child = Child("condor", tmp_path, "processor.no_such_module")

    def fails() -> str | None:
        try:
            child.must_run()
        except ProcessorError as error:
            return str(error)
        return None

    message = wait_until(fails)
    child.kill()
    assert "condor exited unexpectedly with code 1" in message
    assert "no_such_module" in message


def test_a_curve_fits_its_width_and_is_full_at_the_highest():
    assert curve([0, 1, 2, 4], "_-=#", 10) == "_-=#"
    assert len(curve(list(range(1000)), "_-=#", 10)) == 10
    assert curve([0.0], "_-=#", 10) == "_"


# The reckoning.


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    session = Session(Settings(dsn=database.dsn), Progress(), application="test")
    session.connect()
    session.run(TABLES + DDL)
    yield session
    session.close()


def submit(directory: Path, name: str, ids: list[str]) -> None:
    acknowledged(directory, name).write_text("".join(f"{each}\n" for each in ids))


def apply(session: Session, *ids: str, key: str = "k") -> None:
    for number, each in enumerate(ids):
        values = f"('{each}', '{key}', {number})"
        session.run(f"INSERT INTO effect (transaction, key, number) VALUES {values}")


def test_accepted_transactions_that_were_applied_once_pass(session, tmp_path):
    ids = [new_id() for _ in range(5)]
    submit(tmp_path, TELESCOPES[0], ids[:3])
    submit(tmp_path, TELESCOPES[1], ids[3:])
    apply(session, *ids, new_id())

    found = reckon(tmp_path, session)

    assert found.holds
    assert found.line() == "submitted 5  committed 5  dead 0  lost 0  doubled 0"
    assert found.tallies[TELESCOPES[0]] == Tally(3, 0, 3, 0, 0, 0)
    assert acknowledged(tmp_path, TELESCOPES[0]).stat().st_size == 3 * LINE


def test_a_missing_id_is_lost_a_double_one_doubled_and_a_dead_letter_dead(session, tmp_path):
    ids = [new_id() for _ in range(4)]
    submit(tmp_path, TELESCOPES[0], ids)
    apply(session, ids[0], ids[1], ids[1])
    session.run(
        "INSERT INTO processor.dead_letter (id, hash, buffer, lane, entry, body, reason)"
        f" VALUES ('{ids[2]}', gen_random_uuid(), gen_random_uuid(), 'default:0', '1-1', '', 'x')"
    )

    found = reckon(tmp_path, session)

    assert found.line() == "submitted 4  committed 2  dead 1  lost 1  doubled 1"
    assert not found.holds


def test_effects_of_a_key_in_another_order_fail(session, tmp_path):
    ids = [new_id() for _ in range(2)]
    submit(tmp_path, TELESCOPES[0], ids)
    session.run("INSERT INTO effect (transaction, key, number) VALUES"
                f" ('{ids[1]}', 'k', 2), ('{ids[0]}', 'k', 1)")  # fmt: skip

    found = reckon(tmp_path, session)

    assert found.line() == "submitted 2  committed 2  dead 0  lost 0  doubled 0"
    assert found.reordered == 1
    assert not found.holds


def test_a_sum_that_was_added_to_twice_fails(session, tmp_path):
    one = new_id()
    submit(tmp_path, TELESCOPES[0], [one])
    apply(session, one)
    session.run(f"UPDATE telescope SET observations = 1 WHERE name = '{TELESCOPES[0]}'")

    found = reckon(tmp_path, session)

    assert not found.sums_agree
    assert not found.holds


def test_entries_that_still_wait_fail():
    tallies = {"condor": Tally(2, 0, 2, 0, 0, 0)}

    assert Reckoning(tallies, 0, True).holds
    assert not Reckoning(tallies, 0, True, waiting=1).holds


def test_nothing_submitted_fails():
    assert not Reckoning({}, 0, True).holds


def test_the_exit_code_of_the_command_is_the_result(monkeypatch, capsys):
    for tally, code in ((Tally(2, 0, 2, 0, 0, 0), 0), (Tally(2, 0, 1, 0, 1, 0), 1)):
        found = Reckoning({"condor": tally}, 0, True)
        monkeypatch.setattr(scenario, "play", lambda seconds, screen, found=found: found)
        assert main.main(["demo", "--json"]) == code
        record = json.loads(capsys.readouterr().out)
        assert record["holds"] is (code == 0)
        assert record["submitted"] == 2
        assert main.main(["demo"]) == code
        assert capsys.readouterr().out.splitlines()[-1] == found.line()
