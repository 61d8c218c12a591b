"""The one drain thread of the process: start, stop, abort, reload, and the state it is in.

`start` and `stop` may be called from any thread, twice, in any order. Each start makes a `Run` with
its own stop flag: a start that finds the previous thread still ending waits for its end, as long as
a stop would, and never revives it. A forked child has no thread and drops the connections that it
inherited; `start` brings the thread back, and so does the next submit if the parent's thread was
running. In the master of uWSGI no thread runs: each worker starts its own.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from processor import forks
from processor.config import loader
from processor.config.settings import Settings
from processor.errors import AlreadyRunning
from processor.runtime import uwsgi_master
from processor.runtime.run import Hooks, Run, Singleton
from processor.telemetry import metrics, wakeup
from processor.telemetry.status import State, as_mapping
from processor.transaction import statements
from processor.version import __version__

singleton = Singleton()
hooks = Hooks()

#: Settings that a reload does not change: they decide which buffer is drained, and for which site.
_FIXED = ("namespace", "site", "redis.url", "redis.timeout", "health.bind", "drain")

_lock = threading.Lock()
_run: Run | None = None
#: In the master of uWSGI: starts the thread of a worker.
_start_of_workers: Callable[[], object] | None = None


def start(settings: Settings | None = None) -> Singleton:
    """Start the thread unless it runs; return the singleton. Safe from any thread, and twice.

    `settings` default to those of `configure`. Raises ConfigError, and AlreadyRunning if a thread
    that was stopped does not end within `stop_timeout`.
    """
    forks.notice()
    if uwsgi_master.is_this_process():
        _start_in_workers(settings or loader.current())
        return singleton
    run, is_new = _current(settings)
    while run.stopping and not is_new:
        if not run.wait(run.settings.stop_timeout):
            raise AlreadyRunning(
                "the previous drain thread was stopped and has not ended within"
                f" {run.settings.stop_timeout:g} s",
                hint="it waits for a server or a hook: start again later, or end the process",
            )
        run, is_new = _current(settings)
    if is_new:
        # Not under the lock: a green thread may run at once, and ask for it.
        run.begin()
    return singleton


def _current(settings: Settings | None) -> tuple[Run, bool]:
    """Return the run that is alive, else a new one, which the caller must begin, and True."""
    global _run
    with _lock:
        if _run is not None and _run.alive:
            return _run, False
        chosen = settings or loader.current()
        statements.register(chosen.statements)
        run = Run(chosen, singleton, hooks)
        singleton.state = State(
            "standby", "the first pass has not completed", instance=run.instance, site=chosen.site
        )
        singleton.event.set()
        _run, singleton.thread = run, run.thread
        wakeup.revive_with(None)
        return run, True


def _start_in_workers(settings: Settings) -> None:
    global _start_of_workers
    if _start_of_workers is None:
        uwsgi_master.call_in_workers(_begin_worker)
    _start_of_workers = partial(start, settings)
    statements.register(settings.statements)
    singleton.state = State(reason="the master of uWSGI has no thread, each worker has one")


def _begin_worker() -> None:
    if _start_of_workers is not None:
        _start_of_workers()


def stop(timeout: float | None = None) -> bool:
    """Finish the current batch, settle it, and end the thread.

    Returns True if it ended within `timeout` seconds (default: `stop_timeout`). May be called
    twice, and before `start`.
    """
    global _start_of_workers
    forks.notice()
    run, _start_of_workers = _run, None
    if run is None:
        return True
    run.stopping = True
    singleton.event.set()
    return run.wait(run.settings.stop_timeout if timeout is None else timeout)


def abort() -> None:
    """Cut the call in progress and stop.

    The current batch is rolled back, or the ledger shows later that it was committed.
    """
    run = _run
    if run is not None:
        run.abort()
        singleton.event.set()


def reload(settings: Settings) -> list[str]:
    """Use other settings from the next pass on.

    Returns the names of the changed settings that need a restart to take effect.
    """
    run = _run
    if run is None:
        return []
    old = run.settings
    ignored = [name for name in _FIXED if _setting(settings, name) != _setting(old, name)]
    statements.register(settings.statements)
    run.next_settings = replace(
        settings, namespace=old.namespace, site=old.site, redis=old.redis, health=old.health,
        drain=old.drain,
    )  # fmt: skip
    singleton.event.set()
    return ignored


def state(**patience: float) -> dict[str, Any]:
    """The state of the processor in this process, as `/health` shows it; writes nothing.

    The first call may wait for Redis for a second, or for `patience` seconds.
    """
    return as_mapping(observed(**patience), version=__version__)


def observed(**patience: float) -> State:
    """The record behind `state`: the last pass, and what both servers show now."""
    run, last = _living(), judged()
    return last if run is None else run.observed(last, **patience)


def judged() -> State:
    """The state after the last pass, without a look at the servers; never waits."""
    return _judged(time.monotonic())


def _judged(now: float) -> State:
    """The state at `now` (monotonic). Health is progress: a hung thread is *stuck* (rule 31)."""
    run, last = _living(), singleton.state
    if run is None:
        return replace(last, status="stopped", reason=last.reason or "no thread in this process")
    age = run.progress.age(now)
    if age > run.settings.watchdog.limit:
        why = f": {run.progress.failure}" if run.progress.failure else ""
        return replace(last, status="stuck", reason=f"no progress for {age:.0f} s{why}")
    return last


def progress_age(now: float) -> float:
    """Seconds without progress at `now` (monotonic); infinite if no thread runs."""
    run = _living()
    return float("inf") if run is None else run.progress.age(now)


def _living() -> Run | None:
    """The run whose thread is alive."""
    forks.notice()
    run = _run
    return run if run is not None and run.alive else None


def _setting(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _renew() -> None:
    """In a forked child: no thread, a new lock, and connections dropped but not closed (P6)."""
    global _lock, _run
    _lock = threading.Lock()
    if _run is not None and _run.pid == os.getpid():
        return  # Only the locks are of another kind.
    if _start_of_workers is not None:
        wakeup.revive_with(_start_of_workers)
    if _run is not None:
        wakeup.revive_with(None if _run.stopping else partial(start, _run.settings))
        _run.drop()
        _run = None
    singleton.thread = None
    singleton.state = State()
    metrics.forget()


def _at_exit() -> None:
    stop()


forks.renew_with(_renew)
atexit.register(_at_exit)
