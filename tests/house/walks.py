"""Which modules a transaction, a read and the retry of a dead letter pass through, as measured.

A *station* of a walk is a module of `processor` with a function that is handed the transaction as
an argument. All forms of the transaction count: what the builder collects, the encoded body, an
entry, a page or a batch with it, its SQL text, its dead letter or its id. A *helper* is a module
that is not handed it, and has a function that a station calls, directly or not. The ground (errors,
crash points, telemetry, settings), the opening of a session and the command line are neither. While
PostgreSQL works on a batch, the drain thread works on other batches, which is not part of the walk.
A walk ends when the COMMIT that contains the effect has returned, a read when it returns.

`python -m tests.house.walks` prints the walks, with the functions that were handed the transaction
in each module, their helpers, and how many modules ran in any thread until the pass ended;
`processor/README.rst` lists the stations, and `tests/house/test_walks.py` compares the two. The
process that is measured has one processor on real servers and has done the same before, so that
nothing is opened, compiled or registered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import psycopg2

import processor
from processor.cli.main import main as command_line
from processor.embedded import PostgresServer, RedisServer
from processor.transaction.builder import Transaction
from tests.harness.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT / 'processor'}{os.sep}"

#: What every walk uses and none leads through.
GROUND = ("forks", "errors", "version", "crashpoint", "telemetry", "config", "cli")
#: A command opens its session first; a warm processor has opened its own.
OPENING = ("admin.sessions", "connections.fork_guard", "connections.session_settings",
           "ledger.schema")  # fmt: skip

#: The crash points behind the sending of a batch and behind its COMMIT; a decision on a dead letter
#: passes them too.
SENT, COMMITTED = "batch-sent", "batch-committed"
#: The function that runs one pass of the drain thread.
PASS = ("drain.drain", "Drain.run")

#: A value in each transaction that is followed, by which its forms are recognised.
MARK = "walked-by-the-house-test"
#: The mark, and the id of the transaction that is followed.
marks = [MARK]

DDL = f"""
create table walked (id int primary key, note text);
alter table walked add constraint low check (id < 1000);
insert into walked values (0, '{MARK}');
"""

DEPTH = 5


@dataclass
class Walk:
    """The modules that were passed with their functions, in the order of the first call."""

    functions: dict[str, list[str]] = field(default_factory=dict)
    #: The modules with functions that those called.
    called: set[str] = field(default_factory=set)
    sent: bool = False
    ended: bool = False
    #: Every module that ran in any thread until the pass ended, the ground included.
    everything: set[str] = field(default_factory=set)
    pass_ended: bool = False

    def pass_through(self, module: str, function: str) -> None:
        names = self.functions.setdefault(module, [])
        if function not in names:
            names.append(function)

    def reach(self, point: str) -> None:
        self.sent |= point == SENT
        self.ended |= point == COMMITTED

    @property
    def stations(self) -> dict[str, list[str]]:
        return {module: names for module, names in self.functions.items()
                if not _within(module, (*GROUND, *OPENING))}  # fmt: skip

    @property
    def helpers(self) -> list[str]:
        return sorted(module for module in self.called - set(self.functions)
                      if not _within(module, (*GROUND, *OPENING)))  # fmt: skip


class Tracer:
    """Follows what is marked through all threads that begin after it was made."""

    def __init__(self) -> None:
        self._walk: Walk | None = None
        self._local = threading.local()
        threading.setprofile(self._profile)

    @contextmanager
    def follow(self) -> Iterator[Walk]:
        """Record in this thread and in all others until the block ends."""
        walk = self._walk = Walk()
        sys.setprofile(self._profile)
        try:
            yield walk
        finally:
            sys.setprofile(None)
            self._walk = None

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        walk, local = self._walk, self._local
        if walk is None or getattr(local, "busy", False):
            return
        if getattr(local, "walk", None) is not walk:
            # The frames of this thread that were entered since the walk began, each with whether
            # it or a caller of it was handed the transaction.
            local.walk, local.stack = walk, []
        stack: list[tuple[FrameType, bool]] = local.stack
        if event == "return":
            if stack and stack[-1][0] is frame:
                stack.pop()
            walk.pass_ended |= walk.ended and _place(frame) == PASS
        elif event == "call":
            local.busy = True
            try:
                stack.append((frame, self._enter(walk, frame, bool(stack) and stack[-1][1])))
            finally:
                local.busy = False

    @staticmethod
    def _enter(walk: Walk, frame: FrameType, inherited: bool) -> bool:
        module, function = _place(frame)
        if not module:
            return inherited
        walk.everything.add(module)
        if _within(module, ("cli",)):
            # A command has the id in hand in all that it does.
            return False
        code, values = frame.f_code, frame.f_locals
        if inherited and module == "crashpoint":
            walk.reach(values["name"])
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        is_handed = any(_is_marked(values.get(name)) for name in names)
        if is_handed and not walk.ended:
            walk.pass_through(module, function)
        elif inherited and not walk.sent and not walk.ended:
            walk.called.add(module)
        return is_handed or inherited


def _place(frame: FrameType) -> tuple[str, str]:
    """The module and function of a frame; the module is empty if it is not one of `processor`."""
    code = frame.f_code
    if not code.co_filename.startswith(PACKAGE):
        return "", ""
    path = code.co_filename.removeprefix(PACKAGE).removesuffix(".py")
    return path.replace(os.sep, "."), code.co_qualname


def _is_marked(value: Any, depth: int = DEPTH) -> bool:
    """Whether a value is a form of the transaction, or a container or record that has one."""
    if isinstance(value, str):
        return any(mark in value for mark in marks)
    if isinstance(value, bytes):
        return any(mark.encode() in value for mark in marks)
    if not depth:
        return False
    if isinstance(value, dict):
        return any(_is_marked(each, depth - 1) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(_is_marked(each, depth - 1) for each in value)
    return any(_is_marked(getattr(value, name, None), depth - 1) for name in _parts(value))


def _parts(value: Any) -> list[str]:
    """The fields of a record, and what the builder has gathered.

    What the owner of a lane remembers of its entries does not count as a form of a transaction.
    """
    if type(value).__module__.startswith("processor.ownership"):
        return []
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if is_dataclass(value):
        return [each.name for each in fields(value)]
    if isinstance(value, Transaction):
        return list(value.__slots__)
    return []


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


# What is followed.


class Scene:
    """One processor in this process, a table, and ways to wait for what happens in it."""

    def __init__(self, settings: Mapping[str, Any], file: Path) -> None:
        self.dsn = settings["database"]["dsn"]
        self._settings = settings
        self.execute(DDL)
        # The command line finds the settings as it does in an operator's shell.
        file.write_text(json.dumps(settings))
        os.environ["PROCESSOR_CONFIG"] = str(file)
        processor.configure(settings)
        self.tracer = Tracer()
        processor.start()

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def waits(self, sql: str) -> None:
        wait_until(lambda: bool(self.execute(sql)), 20, lambda: f"{sql}: {processor.state()}")

    def submit(self, number: int) -> Walk:
        """The walk of one transaction, with a key and two operations."""
        self.rests()
        with self.tracer.follow() as walk:
            transaction = processor.Transaction(key=MARK)
            marks.append(transaction.id)
            transaction.insert("walked", {"id": number, "note": MARK})
            transaction.update("walked", set={"note": MARK}, where={"id": 0})
            receipt = processor.submit(transaction)
            self.ends(walk)
        marks.remove(transaction.id)
        # From now on, a thread watches the commit notes.
        receipt.wait(timeout=20)
        return walk

    def read(self) -> Walk:
        """The walk of one read by a column, with nothing pending.

        No other walk is of a process that shows pending writes: it would pass the overlay too.
        """
        processor.configure({**self._settings, "overlay": {"tables": {"walked": "id"}}})
        processor.read("walked", where={"note": MARK})
        with self.tracer.follow() as walk:
            processor.read("walked", where={"note": MARK})
        return walk

    def bury(self, number: int) -> str:
        """Leave a dead letter, and answer its id."""
        transaction = processor.Transaction().insert("walked", {"id": number, "note": MARK})
        processor.submit(transaction)
        self.waits(f"select 1 from processor.dead_letter where id = '{transaction.id}'")
        return transaction.id

    def retry(self, transaction_id: str) -> Walk:
        """The walk of one retry, from the operator's command on."""
        self.rests()
        marks.append(transaction_id)
        with self.tracer.follow() as walk:
            assert command_line(["dead", "retry", transaction_id, "--yes"]) == 0
            self.ends(walk)
        marks.remove(transaction_id)
        return walk

    def ends(self, walk: Walk) -> None:
        wait_until(lambda: walk.pass_ended, 20, lambda: f"{walk.functions}: {processor.state()}")
        # Until the thread that watches the commit notes has read the one of this pass.
        time.sleep(0.2)

    @staticmethod
    def rests() -> None:
        """Longer than an idle pass takes to come round, so that what is measured is its own."""
        time.sleep(1.5)


def measure(settings: Mapping[str, Any], file: Path) -> dict[str, Walk]:
    """The three walks, the second time that each is gone."""
    scene = Scene(settings, file)
    try:
        submits = [scene.submit(number) for number in (1, 2)]
        dead = [scene.bury(number) for number in (2000, 2001)]
        scene.execute("alter table walked drop constraint low")
        retries = [scene.retry(transaction_id) for transaction_id in dead]
        read = scene.read()
    finally:
        processor.stop()
    return {"submit": submits[-1], "read": read, "retry": retries[-1]}


def settings_for(redis_url: str, dsn: str) -> dict[str, Any]:
    return {
        "redis": {"url": redis_url},
        "database": {"dsn": dsn, "init": True},
        "retry": {"attempts": 1, "delay": 0.1},
        "health": {"bind": ""},
    }


def main() -> None:
    """Print the walks as JSON."""
    with ExitStack() as stack:
        redis, postgres = stack.enter_context(RedisServer()), stack.enter_context(PostgresServer())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = settings_for(redis.url, postgres.dsn)
        found = measure(settings, directory / "processor.json")
    for name in ("submit", "retry"):
        everything = sorted(found[name].everything)
        print(f"{name}: {len(everything)} modules ran until the pass ended: {' '.join(everything)}")
        helpers = found[name].helpers
        print(f"{name}: {len(helpers)} helpers of its stations: {' '.join(helpers)}")
    print(json.dumps({name: walk.stations for name, walk in found.items()}, indent=2))


def walked() -> dict[str, dict[str, list[str]]]:
    """Measure the walks in a process of their own; functions by module, by walk."""
    done = subprocess.run([sys.executable, "-m", __name__], cwd=ROOT, text=True, timeout=100,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


if __name__ == "__main__":
    main()
