"""The singleton: one thread, one Event, one loop.

DESIGN. The Event is one object for ever. It starts set, so that the first pass runs at once; the
loop waits on it for at most the delay that the last pass answered and clears it *before* it looks,
so that a wake-up during a pass is never lost (rule 29). `start` and `stop` may be called from any
thread, twice, in any order. A run of the thread has its own stop flag: a start that meets a thread
which is still leaving waits for it and never revives it. After fork the child has no thread and
drops what it inherited; `start`, or the next submit where the parent had started, brings it back.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from processor import crashpoint
from processor.config import loader
from processor.config.settings import Settings
from processor.drain.drain import Drain
from processor.runtime.side_threads import SideThreads
from processor.telemetry import faults, metrics, wakeup
from processor.telemetry.progress import Progress
from processor.telemetry.status import State, as_mapping
from processor.transaction import statements
from processor.version import __version__

log = logging.getLogger("processor.runtime")

Hook = Callable[[], Any]


@dataclass
class Hooks:
    """Functions that run in the drain thread, for an application's own database sessions."""

    on_start: list[Hook] = field(default_factory=list)
    on_stop: list[Hook] = field(default_factory=list)
    before_pass: list[Hook] = field(default_factory=list)
    after_pass: list[Hook] = field(default_factory=list)


class Singleton:
    """What the process shares: the Event, the thread, the state after its last pass."""

    def __init__(self) -> None:
        self.event = wakeup.event
        self.thread: threading.Thread | None = None
        self.state = State()


class Run:
    """One life of the thread: its stop flag, its drain, what runs beside it."""

    def __init__(self, settings: Settings, event: threading.Event) -> None:
        self.settings = settings
        self.stopping = False
        self.progress = Progress()
        self.instance = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.next_settings: Settings | None = None
        self._event = event
        self.beside = self.new_beside()
        self.drain = self.new_drain()
        self.thread = threading.Thread(target=_live, args=(self,), name="processor", daemon=True)

    def new_drain(self) -> Drain:
        """A drain by the settings of now."""
        return Drain(
            self.settings, self.instance, self.progress, lambda: self.stopping,
            self.beside.following,
        )  # fmt: skip

    def new_beside(self) -> SideThreads:
        """What runs beside it by the settings of now."""
        return SideThreads(self.settings, self.instance, self._event)


singleton = Singleton()
hooks = Hooks()

#: Settings that a running processor keeps: they say which buffer it drains, and for whom.
KEPT = ("namespace", "site", "redis.url", "redis.timeout", "health.bind", "drain")

_lock = threading.Lock()
_run: Run | None = None


def start(settings: Settings | None = None) -> Singleton:
    """Start the thread unless it runs; returns the singleton. Safe from any thread, and twice.

    `settings` default to those of `configure`. Raises ConfigError.
    """
    global _run
    with _lock:
        if singleton.thread is not None and singleton.thread.is_alive():
            if _run is not None and not _run.stopping:
                return singleton
            singleton.thread.join()
        chosen = settings or loader.current()
        statements.register(chosen.statements)
        _warn_uwsgi()
        run = Run(chosen, singleton.event)
        singleton.state = State(
            "standby", "its first pass is not over", instance=run.instance, site=chosen.site
        )
        singleton.event.set()
        run.thread.start()
        # Shown when it can be joined: a stop in between has not seen this start.
        _run, singleton.thread = run, run.thread
        wakeup.revive_with(None)
    return singleton


def stop(timeout: float | None = None) -> bool:
    """Finish the batch in hand, settle it, end the thread; True if it ended in `timeout` seconds.

    May be called twice, or before start.
    """
    run = _run
    if run is None:
        return True
    run.stopping = True
    singleton.event.set()
    if run.thread is threading.current_thread():
        return False
    run.thread.join(run.settings.stop_timeout if timeout is None else timeout)
    return not run.thread.is_alive()


def abort() -> None:
    """Cut the call in progress: the batch in hand is rolled back, or found in the ledger later."""
    run = _run
    if run is not None:
        run.stopping = True
        run.drain.database.abort()
        run.drain.redis.abort()
        singleton.event.set()


def reload(settings: Settings) -> list[str]:
    """Use other settings from the next pass on; the names of those that differ and are kept."""
    run = _run
    if run is None:
        return []
    old = run.settings
    kept = [name for name in KEPT if _setting(settings, name) != _setting(old, name)]
    statements.register(settings.statements)
    run.next_settings = replace(
        settings, namespace=old.namespace, site=old.site, redis=old.redis, health=old.health,
        drain=old.drain,
    )  # fmt: skip
    singleton.event.set()
    return kept


def state() -> dict[str, Any]:
    """How the processor of this process stands, as `/health` shows it."""
    return as_mapping(judged(time.monotonic()), version=__version__)


def judged(now: float) -> State:
    """The state at `now` (monotonic): health is progress, so a hung thread is *stuck* (rule 31)."""
    run, thread, known = _run, singleton.thread, singleton.state
    if run is None or thread is None or not thread.is_alive():
        return replace(known, status="stopped", reason=known.reason or "no thread in this process")
    age = run.progress.age(now)
    if age > run.settings.watchdog.limit:
        why = f": {run.progress.failure}" if run.progress.failure else ""
        return replace(known, status="stuck", reason=f"no progress for {age:.0f} s{why}")
    return known


def progress_age(now: float) -> float:
    """Seconds without progress at `now` (monotonic); infinite if no thread runs."""
    run, thread = _run, singleton.thread
    if run is None or thread is None or not thread.is_alive():
        return float("inf")
    return run.progress.age(now)


def _live(run: Run) -> None:
    """The thread: from hooks to hooks."""
    _call(hooks.on_start)
    run.beside.start()
    try:
        _loop(run)
    finally:
        crashpoint.reach("stop-seen")
        run.drain.leave()
        run.beside.stop(2.0)
        _call(hooks.on_stop)
        singleton.state = replace(singleton.state, status="stopped", reason="", lanes={})


def _loop(run: Run) -> None:
    delay = 0.0
    while True:
        run.beside.doorbell.wait_for(run.drain.streams())
        singleton.event.wait(delay)
        singleton.event.clear()
        run.beside.doorbell.rest()
        if run.stopping:
            return
        _call(hooks.before_pass)
        delay = _pass(run)
        singleton.state = run.drain.state(time.time())
        _call(hooks.after_pass)


def _pass(run: Run) -> float:
    if run.next_settings is not None:
        run.settings, run.next_settings = run.next_settings, None
        run.drain.leave()
        run.beside.stop(2.0)
        before, run.beside = run.beside, run.new_beside()
        run.beside.following.inherit(before.following)
        run.drain = run.new_drain()
        run.beside.start()
    try:
        delay = run.drain.run(time.monotonic())
        run.progress.passed()
        return delay
    except Exception as error:
        # A defect must not end the thread, and its words may hold values: only its place is told.
        run.progress.failed(f"a pass failed and will be tried again: {faults.place(error)}")
        metrics.count("verdicts", verdict="defect")
        log.error("%s", run.progress.failure)
        run.drain.leave(ends=False)
        return max(1.0, run.settings.interval)


def _call(functions: list[Hook]) -> None:
    for function in list(functions):
        try:
            function()
        except Exception as error:
            log.error("hook %s failed: %s", getattr(function, "__name__", "?"), faults.place(error))


def _setting(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _warn_uwsgi() -> None:
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not uwsgi.opt.get("enable-threads"):
        text = "uWSGI runs without threads: the processor's thread never runs (set enable-threads)"
        log.warning(text)
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _after_fork() -> None:
    """In the child: no thread, fresh locks, and connections dropped but not closed (P6)."""
    global _lock, _run
    _lock = threading.Lock()
    if _run is not None:
        wakeup.revive_with(None if _run.stopping else start)
        _run.drain.database.drop()
        _run.drain.redis.drop()
        _run.beside.drop()
        _run = None
    singleton.thread = None
    singleton.state = State()
    metrics.forget()


def _at_exit() -> None:
    stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
