"""Forks of a process with a running drain thread: gunicorn --preload, multiprocessing.

Rule 110: a process renews what it did not make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.service import settings_of
from tests.harness.wait import wait_until


@pytest.fixture
def settings(database: Database, redis_url: str, tmp_path: Path) -> str:
    """A settings file that names Redis by host name, so that its address must be looked up."""
    database.execute("create table effect (n int)")
    by_name = redis_url.replace("127.0.0.1", "localhost")
    path = tmp_path / "processor.yml"
    path.write_text(yaml.safe_dump(settings_of(by_name, database.dsn, {})))
    return str(path)


def test_no_thread_of_the_processor_imports_anything_since_a_fork_would_keep_the_import_lock(
    spawn: Spawn, settings: str
) -> None:
    process = spawn("""
import json, sys, threading, time
import processor

class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            late.append(name)

late = []
processor.configure(sys.argv[1])
def wait(name, end=time.monotonic() + 10):
    while not processor.state()["background_processor"][name] and time.monotonic() < end:
        time.sleep(0.01)

processor.start  # imports what a caller of it imports
sys.meta_path.insert(0, Watch())
processor.start()
wait("last_run")
processor.submit(processor.Transaction().insert("effect", {"n": 1}))
processor.submit(processor.Transaction().insert("nowhere", {"n": 1}))
processor.submit(processor.Transaction(key="k").delete("effect", where={"n": 9}, expect=1))
wait("dead")
processor.stop()
print(json.dumps(late))
""", settings)  # fmt: skip

    assert process.wait(20) == 0, process.output
    assert json.loads(process.lines[-1]) == []


def test_after_a_fork_at_any_moment_parent_and_children_keep_working(
    spawn: Spawn, settings: str, database: Database
) -> None:
    rounds = 20
    process = spawn(f"""
import faulthandler, os, sys, time
import processor

processor.configure(sys.argv[1])

def submit(n):
    processor.submit(processor.Transaction().insert("effect", {{"n": n}}))

def child(n):
    faulthandler.dump_traceback_later(30, exit=True)
    # In a child with an even number its first submit starts the thread, in the others `start` does.
    if n % 2:
        processor.start()
    submit(n)
    os._exit(0 if processor.state()["background_processor"]["status"] != "stopped"
             and processor.stop(20) else 1)

failed = 0
for n in range({rounds}):
    processor.start()
    submit(-n)
    time.sleep(n % 5 * 0.004)
    children = []
    for which in (1, 2):
        pid = os.fork()
        if not pid:
            child(1000 + 10 * n + which)
        children.append(pid)
    failed += sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    if n % 4 == 3:
        processor.stop()
processor.start()
print("failed", failed)
time.sleep(60)
""", settings)  # fmt: skip

    assert process.expect("failed", 60) == "failed 0", process.output
    expected = [-n for n in range(rounds)]
    expected += [1000 + 10 * n + which for n in range(rounds) for which in (1, 2)]

    def effects() -> list[int]:
        return [row[0] for row in database.execute("select n from effect order by n")]

    wait_until(lambda: len(effects()) >= len(expected), message=lambda: process.output)
    assert effects() == sorted(expected)


def test_a_fork_waits_while_a_thread_looks_up_an_address(spawn: Spawn) -> None:
    """Otherwise the C library's lock stays held in the child, which then reaches no server."""
    process = spawn("""
import os, sys, threading
from processor.connections.fork_guard import resolving

inside, left = threading.Event(), []

def look_up():
    with resolving():
        inside.set()
        threading.Event().wait(0.05)
        left.append(True)

thread = threading.Thread(target=look_up)
thread.start()
inside.wait()
pid = os.fork()
if not pid:
    with resolving():  # Not held in the child.
        os._exit(0 if left else 1)
thread.join()
with resolving():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""")
    assert process.wait(20) == 0, process.output


def test_a_fork_that_python_is_not_told_of_leaves_parent_and_child_unharmed(
    spawn: Spawn, settings: str, database: Database
) -> None:
    """uWSGI forks so, while no thread of the processor runs."""
    process = spawn("""
import ctypes, os, sys
import processor
from processor.producer import submit

processor.configure(sys.argv[1])

def commit(n):
    receipt = processor.submit(processor.Transaction().insert("effect", {"n": n}))
    processor.start()
    return receipt.wait(timeout=10).state

def client():
    return submit._writer.current().pool.ask(lambda redis: redis.call("CLIENT", "ID"))

before = client()
child = ctypes.PyDLL(None).fork()
if not child:
    assert client() != before
    assert commit(1) == "committed"
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client() == before
assert commit(2) == "committed"
assert processor.stop()
print("unharmed")
""", settings)  # fmt: skip

    assert process.wait(20) == 0, process.output
    assert process.lines[-1] == "unharmed"
    assert database.execute("select n from effect order by n") == [(1,), (2,)]


def test_processes_of_multiprocessing_submit_and_wait_after_a_start(
    spawn: Spawn, settings: str, database: Database
) -> None:
    process = spawn("""
import multiprocessing, sys
import processor

processor.configure(sys.argv[1])

def commit(n):
    receipt = processor.submit(processor.Transaction().insert("effect", {"n": n}))
    return receipt.wait(timeout=10).state

processor.start()
states = {commit(0)}
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    states.update(pool.map(commit, range(1, 20)))
process = context.Process(target=commit, args=(20,))
process.start()
process.join(20)
print(process.exitcode, states, commit(21), processor.stop())
""", settings)  # fmt: skip

    assert process.wait(30) == 0, process.output
    assert process.lines[-1] == "0 {'committed'} committed True"
    assert database.execute("select n from effect order by n") == [(n,) for n in range(22)]
