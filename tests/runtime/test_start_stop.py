"""The thread is started, stopped, forked and woken in every order that an application may use."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_driver

from tests.harness import workload
from tests.harness.process import Process, Spawn
from tests.harness.proxy import Proxy
from tests.harness.servers import Database
from tests.harness.wait import wait_until
from tests.harness.workload import Site, plain

#: The head of each program.
HEAD = """
import json, os, random, sys, threading, time
import processor
from processor.runtime import drain_thread

processor.configure(json.loads(sys.argv[1]))

def wait_until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.002)

def threads():
    return sorted(thread.name for thread in threading.enumerate())

def owns():
    return any(lane["owner"] for lane in processor.state()["lanes"].values())

def effect(part=0):
    transaction = processor.Transaction()
    return transaction.insert("effect", {"id": transaction.id, "part": part})
"""


@pytest.fixture
def site(database: Database, redis_url: str) -> Iterator[Site]:
    yield from workload.sites(redis_url, workload.prepare(database))


@pytest.fixture
def program(spawn: Spawn, site: Site) -> Callable[..., Process]:
    """`program(code, **settings)`: run code with the settings of the site, changed by these."""

    def start(code: str, **settings: Any) -> Process:
        return spawn(HEAD + code, json.dumps(site.mapping | settings))

    return start


def sessions(database: Database) -> int:
    """The number of sessions on the test's database, without the one that counts."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    return int(database.execute(query, (database.name,))[0][0])


def clients(redis: redis_driver.Redis) -> int:
    return len(redis.client_list())


HAMMER = """
before = threads()

def hammer(seed):
    chance = random.Random(seed)
    for _ in range(50):
        assert processor.start() is processor.singleton
        if chance.random() < 0.2:
            time.sleep(chance.uniform(0, 0.05))
        if chance.random() < 0.3:
            processor.submit(effect())
        assert processor.stop()

hammers = [threading.Thread(target=hammer, args=(seed,)) for seed in range(10)]
for thread in hammers:
    thread.start()
for thread in hammers:
    thread.join()
assert processor.stop()
wait_until(lambda: threads() == before)
from processor.producer import submit as producer
producer._writer.close()
print("hammered")
sys.stdin.close()
time.sleep(30)
"""


def test_500_rounds_of_start_and_stop_from_ten_threads_leave_nothing_behind(
    program: Callable[..., Process], site: Site
) -> None:
    def connections() -> tuple[int, int]:
        return sessions(site.database), clients(site.redis)

    before = connections()

    hammer = program(HAMMER)
    hammer.expect("hammered", 60)

    assert "Traceback" not in hammer.output, hammer.output
    # There may be fewer: connections that an earlier test dropped may be closed only now.
    wait_until(
        lambda: all(now <= then for now, then in zip(connections(), before, strict=True)),
        message=lambda: f"{before}: {sessions(site.database)} {site.redis.client_list()}",
    )
    assert hammer.running


def test_stop_before_start_stop_twice_and_stop_from_the_thread_itself_return_at_once(
    program: Callable[..., Process],
) -> None:
    orderly = program("""
assert processor.stop() and processor.stop(0)
assert processor.state()["background_processor"]["status"] == "stopped"
assert processor.start().thread is processor.start().thread
answers = []
drain_thread.hooks.after_pass.append(lambda: answers.append(processor.stop()))
drain_thread.hooks.on_stop.append(lambda: answers.append(threading.current_thread().name))
wait_until(lambda: not processor.singleton.thread.is_alive())
assert answers[0] is False and answers[-1] == "processor", answers
assert processor.stop() and processor.stop()
drain_thread.hooks.after_pass.clear()
processor.start()
wait_until(owns)
assert processor.stop()
assert processor.state()["background_processor"]["status"] == "stopped"
""")

    assert orderly.wait() == 0, orderly.output


#: The delay is so long that only a wake-up can explain a pass.
PATIENT: dict[str, Any] = {"interval": 50.0, "watchdog": {"limit": 200.0}}

WAKE = """
from processor.telemetry import metrics

def passes():
    return int(metrics.value("passes"))

def quiet():
    seen = passes()
    time.sleep(0.3)
    return passes() == seen

processor.start()
wait_until(owns)
wait_until(quiet)
"""


def patient(site: Site) -> dict[str, Any]:
    return PATIENT | {"database": {"dsn": site.database.dsn, "takeover": 290.0}}


def test_a_wake_up_at_any_moment_of_a_pass_makes_another_pass(
    program: Callable[..., Process], site: Site
) -> None:
    """The Event is cleared before the pass looks for work (rule 29)."""
    woken = program(
        WAKE
        + """
# The last moment is after the pass has looked for work and before the thread waits.
todo = [drain_thread.hooks.before_pass, drain_thread.hooks.after_pass] * 20
def ring():
    if todo:
        moment = todo.pop()
        moment.append(once)
def once():
    for moment in (drain_thread.hooks.before_pass, drain_thread.hooks.after_pass):
        if once in moment:
            moment.remove(once)
    processor.event.set()
for turn in range(40):
    ring()
    before = passes()
    processor.event.set()
    wait_until(lambda: passes() >= before + 2)
    wait_until(quiet) if turn % 10 == 0 else None
print(passes())
""",
        **patient(site),
    )

    assert woken.wait(30) == 0, woken.output


def test_a_storm_of_wake_ups_loses_no_work_and_the_thread_rests_afterwards(
    program: Callable[..., Process], site: Site
) -> None:
    storm = program(
        WAKE
        + """
over = threading.Event()
def ring():
    while not over.is_set():
        for _ in range(1000):
            processor.event.set()
        time.sleep(0)
ringers = [threading.Thread(target=ring) for _ in range(3)]
for thread in ringers:
    thread.start()
for _ in range(200):
    processor.submit(effect())
over.set()
for thread in ringers:
    thread.join()
wait_until(quiet)
print("committed", int(metrics.value("committed")))
used = time.process_time()
time.sleep(1)
assert time.process_time() - used < 0.05, "the thread does not rest"
""",
        **patient(site),
    )

    assert storm.wait(60) == 0, storm.output
    assert "committed 200" in storm.output


def test_without_any_wake_up_work_is_found_after_the_interval(
    program: Callable[..., Process], site: Site
) -> None:
    # No submit in this process sets the Event, and Redis refuses XREAD to the doorbell.
    site.redis.acl_setuser("deaf", enabled=True, nopass=True, keys="*", categories=["+@all"],
                           commands=["-xread"])  # fmt: skip
    url = site.mapping["redis"]["url"].replace("redis://", "redis://deaf:x@")
    deaf = program(
        "processor.start()\nwait_until(owns)\nprint('ready')\ntime.sleep(30)",
        **patient(site) | {"redis": {"url": url}, "interval": 0.5},
    )  # fmt: skip
    deaf.expect("ready")

    receipts = site.submit([plain() for _ in range(3)])

    site.wait_decided([r.id for r in receipts], 3)
    assert not site.findings()
    site.redis.acl_deluser("deaf")


def test_an_idle_processor_uses_little_cpu(program: Callable[..., Process], site: Site) -> None:
    idle = program(
        WAKE
        + """
before, used, started = passes(), time.process_time(), time.monotonic()
time.sleep(2)
made, lasted = passes() - before, time.monotonic() - started
assert made <= lasted + 1, (made, lasted)
assert time.process_time() - used < 0.05 * lasted
""",
        interval=1.0,
        database={"dsn": site.database.dsn},
    )

    assert idle.wait(20) == 0, idle.output


FORK = """
processor.start()
wait_until(owns)
processor.submit(effect())
session = drain_thread._run.drain.database._connection.info.backend_pid
held = processor.event

child = os.fork()
if child == 0:
    assert processor.event is held and not processor.singleton.thread
    assert threads() == ["MainThread"], threads()
    assert processor.state()["background_processor"]["status"] == "stopped"
    REVIVE
    wait_until(lambda: processor.singleton.thread.is_alive())
    wait_until(lambda: processor.state()["background_processor"]["status"] == "standby")
    print("revived", flush=True)
    # A web worker ends either with its atexit functions or without them.
    LEAVE
pid, status = os.waitpid(child, 0)
assert status == 0, status
for _ in range(5):
    processor.submit(effect())
time.sleep(0.3)
assert drain_thread._run.drain.database._connection.info.backend_pid == session
assert drain_thread._run.drain.database.generation == 1
assert drain_thread._run.drain.redis.generation == 1
print("unharmed")
"""


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)", "processor.stop(); sys.exit(0)"])
@pytest.mark.parametrize("revive", ["processor.submit(effect())", "processor.start()"])
def test_a_forked_child_has_no_thread_until_it_starts_or_submits_and_the_parent_is_unharmed(
    program: Callable[..., Process], site: Site, revive: str, leave: str
) -> None:
    # So long that a pause of the machine does not end the parent's session.
    unhurried = {"dsn": site.database.dsn, "takeover": 60.0}
    code = FORK.replace("REVIVE", revive).replace("LEAVE", leave)
    parent = program(code, database=unhurried)

    assert parent.wait(20) == 0, parent.output
    assert "revived" in parent.output
    assert "unharmed" in parent.output
    wait_until(lambda: site.redis.xlen(site.lane.stream) == 0)
    submitted = 6 + ("submit" in revive)
    assert site.database.execute("SELECT count(*), count(DISTINCT id) FROM effect") == [
        (submitted, submitted)
    ]


def test_a_child_whose_parent_never_started_stays_without_a_thread(
    program: Callable[..., Process], site: Site
) -> None:
    quiet = program("""
processor.submit(effect())
child = os.fork()
processor.submit(effect())
assert threads() == ["MainThread"], threads()
if child:
    assert os.waitpid(child, 0)[1] == 0
""")

    assert quiet.wait() == 0, quiet.output
    assert site.redis.xlen(site.lane.stream) == 3


def test_forked_children_take_over_when_the_parent_is_killed(
    program: Callable[..., Process], site: Site
) -> None:
    parent = program("""
processor.start()
wait_until(owns)
if os.fork() == 0:
    processor.submit(effect())
    print("standing by", flush=True)
    wait_until(owns, 20)
    print("took over", flush=True)
    for _ in range(5):
        processor.submit(effect())
    wait_until(lambda: processor.state()["background_processor"]["transactions_processed"] >= 5)
    print("child done", flush=True)
    os._exit(0)
time.sleep(60)
""")
    parent.expect("standing by")

    parent.send(signal.SIGKILL)

    wait_until(lambda: "child done" in parent.output, 15, lambda: parent.output)


def test_a_fork_at_any_moment_of_a_busy_parent_leaves_no_lock_held(
    program: Callable[..., Process], site: Site
) -> None:
    busy = program(
        """
processor.start()
over = threading.Event()
# Imports what a submit needs: a fork during an import leaves its lock held in the child.
processor.submit(effect())
def produce():
    while not over.is_set():
        processor.submit(effect())
producers = [threading.Thread(target=produce, daemon=True) for _ in range(3)]
for thread in producers:
    thread.start()
for turn in range(40):
    child = os.fork()
    if child == 0:
        processor.submit(effect())
        processor.start()
        assert processor.stop(20)
        os._exit(0)
    deadline = time.monotonic() + 30
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            raise SystemExit("a child hangs")
        time.sleep(0.002)
over.set()
for thread in producers:
    thread.join()
""",
        interval=0.05,
    )

    assert busy.wait(60) == 0, busy.output
    assert "Traceback" not in busy.output, busy.output


@pytest.mark.parametrize("where", ["postgres", "redis"])
def test_a_program_ends_in_bounded_time_while_a_server_hangs(
    program: Callable[..., Process], site: Site, where: str,
    proxy_to: Callable[..., Proxy], database: Database, redis_server: Any,
) -> None:  # fmt: skip
    proxy = proxy_to(database.server if where == "postgres" else redis_server)
    settings: dict[str, Any] = {
        "stop_timeout": 1.0,
        "redis": {"url": proxy.url if where == "redis" else redis_server.url, "timeout": 20.0},
        "database": {
            "dsn": proxy.dsn_of(database.name) if where == "postgres" else database.dsn,
            "call_timeout": 30.0, "statement_timeout": 0.8, "lock_timeout": 0.5,
        },
    }  # fmt: skip
    hanging = program(
        """
processor.start()
wait_until(owns)
print("ready", flush=True)
sys.stdin.read()
wait_until(lambda: os.path.exists("go"), 20)
processor.event.set()
time.sleep(0.3)
print("ending", time.time(), flush=True)
""",
        **settings,
    )
    hanging.expect("ready")
    proxy.hold()
    open_gate(hanging)

    ended = float(hanging.expect("ending").split()[1])

    assert hanging.wait(10) == 0, hanging.output
    assert os.stat(hanging._output).st_mtime - ended < 5


def open_gate(process: Process) -> None:
    """Let a program continue that waits for a file in its directory."""
    with open(f"/proc/{process.pid}/cwd/go", "w"):
        pass


def test_importing_opens_and_starts_nothing(spawn: Spawn) -> None:
    code = """
        import os, pkgutil, sys, threading
        def opened():
            paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            return {path: os.readlink(path) for path in paths if os.path.exists(path)}
        before = opened()
        import processor
        assert "redis" not in sys.modules and "psycopg2" not in sys.modules
        for found in pkgutil.walk_packages(processor.__path__, "processor."):
            if not found.name.endswith("__main__"):
                __import__(found.name)
        processor.submit, processor.start, processor.event, processor.Transaction
        new = [link for path, link in opened().items() if before.get(path) != link]
        assert not any("socket:" in link for link in new), new
        assert threading.active_count() == 1, threading.enumerate()
        assert not open("/proc/self/task/%d/children" % os.getpid()).read().split()
        print("nothing")
    """

    program = spawn(code)

    assert program.wait() == 0, program.output
    assert program.lines == ["nothing"]


def test_a_start_after_a_stop_that_timed_out_is_refused_in_bounded_time_and_later_works(
    program: Callable[..., Process], site: Site
) -> None:
    hanging = program(
        """
inside, hangs = threading.Event(), threading.Event()
processor.hooks.before_pass += [inside.set, hangs.wait]
processor.start()
inside.wait()
assert not processor.stop(0.1)

refused = []
def start():
    try:
        processor.start()
    except processor.AlreadyRunning as error:
        refused.append(str(error))
starts = [threading.Thread(target=start) for _ in range(3)]
begun = time.monotonic()
for thread in starts:
    thread.start()
assert processor.state()["background_processor"]["status"] != "stopped"
assert not processor.stop(0)
for thread in starts:
    thread.join()
assert 0.2 < time.monotonic() - begun < 5
assert len(refused) == 3 and "has not ended within 0.3 s" in refused[0], refused

hangs.set()
wait_until(lambda: processor.stop(0))
processor.start()
wait_until(owns)
assert processor.stop()
""",
        stop_timeout=0.3,
        database={"dsn": site.database.dsn, "statement_timeout": 0.2, "lock_timeout": 0.1},
    )

    assert hanging.wait(20) == 0, hanging.output


@pytest.mark.parametrize("step", ["state", "publish", "streams", "leave", "_made_from"])
def test_a_defect_in_any_step_beside_the_pass_does_not_end_the_thread(
    program: Callable[..., Process], site: Site, step: str
) -> None:
    broken = program(
        """
from processor.config import loader
from processor.drain.drain import Drain
from processor.runtime.run import Run

step, failed = "STEP", []
owner = Run if step == "_made_from" else Drain
sound = getattr(owner, step)

def fails(*arguments, **options):
    failed.append(step)
    raise LookupError("a value")

processor.start()
wait_until(owns)
thread = processor.singleton.thread
setattr(owner, step, fails)
drain_thread.reload(loader.current())
wait_until(lambda: failed)
setattr(owner, step, sound)
drain_thread.reload(loader.current())
processor.submit(effect())
wait_until(lambda: processor.state()["background_processor"]["transactions_processed"])
wait_until(owns)
assert processor.singleton.thread is thread and thread.is_alive()
wait_until(lambda: "processor-doorbell" in threads())
setattr(owner, step, fails)
assert processor.stop()
assert threads() == ["MainThread"], threads()
""".replace("STEP", step),
        interval=0.2,
    )

    assert broken.wait(20) == 0, broken.output
    assert "LookupError at" in broken.output
    assert "a value" not in broken.output
