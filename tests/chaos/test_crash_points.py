"""A processor is killed with -9 at every crash point between reading and settling, without harm.

Each run has a mixed load, a processor that dies at the point, and a second one that continues. The
checker compares the tables with the receipts while dead letters still hold their followers, and
again after an operator has decided them.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor import crashpoint
from processor.embedded import PostgresServer
from processor.transaction.operations import encoder
from tests.harness import workload
from tests.harness.checker import Submitted
from tests.harness.process import Process, Spawn
from tests.harness.servers import Database, execute
from tests.harness.wait import wait_until
from tests.harness.workload import Site, Work, child, held, mixed, parent, plain, poison

#: Batch size, and a number of transactions that fills several batches.
SIZES = {1: 40, 7: 60, 100: 220}
#: The visit to a point at which the process dies; at later visits more work is in progress.
VISITS = {1: 3, 7: 2, 100: 1}
PRODUCER_POINTS = ("submit-before-add", "submit-after-add")
#: All delayed work is moved at once, and a processor stops once.
ONCE = ("move-added", "move-removed", "stop-seen")
#: Reached once for each of three lanes, however much there is to do.
THRICE = ("lane-owned",)
#: Reached if a retry fails again: `tests/drain/test_parked_remains.py` makes one fail for long.
SELDOM = ("retry-before", "retry-recorded")
POINTS = [name for name in crashpoint.NAMES if name not in (*PRODUCER_POINTS, *SELDOM)]

PRODUCER = """
import json, sys
import processor

processor.configure(json.loads(sys.argv[1]))
for text in json.loads(sys.argv[2]):
    receipt = processor.submit(text)
    print("accepted", receipt.id, receipt.entry_id)
"""


@pytest.fixture(scope="module")
def tables(postgres_server: PostgresServer) -> Iterator[Database]:
    """One database for all runs, since each run has its own buffer and lanes."""
    execute(postgres_server.dsn, "create database crash_points strategy file_copy")
    yield workload.prepare(Database(postgres_server, "crash_points"))
    execute(postgres_server.dsn, "drop database crash_points with (force)")


def armed(point: str, visit: int = 1) -> dict[str, str]:
    return {"PROCESSOR_CRASHPOINTS": "armed", "PROCESSOR_CRASHPOINT": f"{point}:{visit}"}


def dies(process: Process, point: str) -> None:
    """Check that the crash point killed the process: nothing else sends SIGKILL."""
    assert process.wait(20) == -signal.SIGKILL, f"{point} was not reached:\n{process.output}"


def kill_and_recover(spawn: Spawn, site: Site, point: str, size: int, visit: int) -> None:
    # A later visit needs more work.
    work = mixed(SIZES[size] * (1 + visit // 4))
    site.submit(work)
    first = site.start(spawn, **armed(point, visit))
    if point == "stop-seen":
        first.expect("started")
        site.wait_decided([work[0].transaction.id])
        first.send(signal.SIGTERM)
    dies(first, point)

    second = site.start(spawn)
    # The first may have left no work; SIGTERM must not come before the second one blocks it.
    second.expect("started")
    waiting = held(work)
    site.wait_decided({one.transaction.id for one in work} - waiting)
    wait_until(lambda: site.redis.xlen(site.lane.stream) == 0, message="an empty stream")
    # A transaction whose retry succeeded stays parked until it is settled.
    wait_until(lambda: site.parked() == waiting)
    assert not site.findings(waiting), site.findings(waiting)

    if size == 7 or point.startswith(("park", "dead", "release")):
        decide_dead_letters(site, work)
        assert not site.findings(), site.findings()
    assert second.terminate() == 0


def decide_dead_letters(site: Site, work: list[Work]) -> None:
    """Discard one half, and retry the other after its cause is removed."""
    holding = [one.transaction.id for one in work if one.poison and one.keys]
    site.ask("discard", holding[::2])
    site.database.execute(
        "ALTER TABLE effect DROP CONSTRAINT positive;"
        f" INSERT INTO parent VALUES ({workload.ORPHANED})"
    )
    try:
        site.ask("retry", holding[1::2])
        site.wait_decided({one.transaction.id for one in work})
    finally:
        site.wait_empty()
        site.database.execute(
            "ALTER TABLE effect ADD CONSTRAINT positive CHECK (amount > 0) NOT VALID"
        )


@pytest.fixture
def site(request: pytest.FixtureRequest, tables: Database, redis_url: str) -> Iterator[Site]:
    """A buffer whose processors commit batches of the test's `size`."""
    workload.empty(tables)
    yield from workload.sites(redis_url, tables, batch={"entries": request.getfixturevalue("size")})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("point", POINTS)
def test_a_processor_killed_at_any_point_loses_doubles_and_reorders_nothing(
    point: str, size: int, spawn: Spawn, site: Site
) -> None:
    """Nothing is handed out, so nothing is stranded (rule 8)."""
    visit = 1 if point in ONCE else VISITS[size]
    kill_and_recover(spawn, site, point, size, visit)


@pytest.mark.soak
@pytest.mark.parametrize("visit", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("point", [name for name in POINTS if name not in (*ONCE, *THRICE)])
def test_a_processor_killed_at_a_later_visit_loses_doubles_and_reorders_nothing(
    point: str, size: int, visit: int, spawn: Spawn, site: Site
) -> None:
    kill_and_recover(spawn, site, point, size, visit)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("point", PRODUCER_POINTS)
def test_a_producer_killed_while_submitting_may_submit_everything_again(
    point: str, size: int, spawn: Spawn, site: Site
) -> None:
    work = [plain(f"k{n % 3}") for n in range(size)]
    arguments = [json.dumps(site.mapping), json.dumps([json_form(one) for one in work])]
    first = spawn(PRODUCER, *arguments, **armed(point, (size + 1) // 2))
    dies(first, point)
    again = spawn(PRODUCER, *arguments)
    assert again.wait(20) == 0, again.output

    processor = site.start(spawn)
    site.wait_decided([one.transaction.id for one in work])
    site.wait_empty()
    assert processor.terminate() == 0
    site.history += [*accepted(first, work), *accepted(again, work)]
    assert len(site.history) == size + (size - 1) // 2
    assert not site.findings(), site.findings()


def json_form(work: Work) -> str:
    """Return the JSON that a producer in another language would write."""
    made = work.transaction
    whole = {"id": made.id, "keys": work.keys, "operations": made.operations}
    return encoder.encode(whole).decode()


def accepted(producer: Process, work: list[Work]) -> Iterator[Submitted]:
    """Return what a producer had acknowledged before it died."""
    keys = {one.transaction.id: one.keys for one in work}
    for line in producer.lines:
        _, transaction, entry = line.split()
        yield Submitted(transaction, keys[transaction], entry=entry)


@pytest.mark.parametrize("size", [7])
def test_a_dead_letter_without_hold_blocks_nothing_after_a_crash(
    spawn: Spawn, tables: Database, redis_url: str, size: int
) -> None:
    workload.empty(tables)
    settings = {"batch": {"entries": size}, "dead_letter": {"hold": "none"}}
    for site in workload.sites(redis_url, tables, **settings):
        work = [plain("k"), poison("k"), plain("k"), child(1, "k"), plain("k"), poison("k")]
        work += [parent(1), plain("k")]
        site.submit(work)
        dies(site.start(spawn, **armed("dead-after")), "dead-after")

        processor = site.start(spawn)

        site.wait_decided([one.transaction.id for one in work])
        site.wait_empty()
        assert not site.findings(), site.findings()
        assert processor.terminate() == 0


def test_crash_points_are_inert_unless_armed_in_the_environment(spawn: Spawn) -> None:
    code = """
        import processor
        from processor import crashpoint
        for name in crashpoint.NAMES:
            crashpoint.reach(name)
        print("alive")
    """
    quiet: list[dict[str, str]] = [
        {}, {"PROCESSOR_CRASHPOINT": "pass-start"},
        {"PROCESSOR_CRASHPOINTS": "armed"},
        {"PROCESSOR_CRASHPOINTS": "1", "PROCESSOR_CRASHPOINT": "pass-start"},
        {"PROCESSOR_CRASHPOINTS": "armed", "PROCESSOR_CRASHPOINT": "no-such-point"},
    ]  # fmt: skip

    programs = [spawn(code, **environ) for environ in quiet]
    dead = spawn(code, **armed("pass-start"))

    assert [program.wait() for program in programs] == [0] * len(quiet)
    assert dead.wait() == -signal.SIGKILL


def test_every_crash_point_in_the_code_is_named_and_every_named_one_is_reached() -> None:
    sources = (Path(crashpoint.__file__).parent).glob("**/*.py")
    reached = {
        name
        for source in sources
        for name in re.findall(r'crashpoint\.reach\("([^"]+)"\)', source.read_text())
    }

    assert reached == set(crashpoint.NAMES)
