"""The one drain thread of the process: start, stop, abort, reload, and the state it is in.

`start` and `stop` may be called from any thread, twice, in any order. Each start makes a `Run` with
its own stop flag: a start that finds the previous thread still ending waits for its end and never
revives it. A forked child has no thread and drops the connections that it inherited; `start` brings
the thread back, and so does the next submit if the parent's thread was running.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import warnings
from dataclasses import replace
from typing import Any

from processor.config import loader
from processor.config.settings import Settings
from processor.runtime.run import Hooks, Run, Singleton
from processor.telemetry import metrics, wakeup
from processor.telemetry.status import State, as_mapping
from processor.transaction import statements
from processor.version import __version__

log = logging.getLogger("processor.runtime")

singleton = Singleton()
hooks = Hooks()

#: Settings that a reload does not change: they decide which buffer is drained, and for which site.
_FIXED = ("namespace", "site", "redis.url", "redis.timeout", "health.bind", "drain")

_lock = threading.Lock()
_run: Run | None = None


def start(settings: Settings | None = None) -> Singleton:
    """Start the thread unless it runs; return the singleton. Safe from any thread, and twice.

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
        run = Run(chosen, singleton, hooks)
        singleton.state = State(
            "standby", "the first pass has not completed", instance=run.instance, site=chosen.site
        )
        singleton.event.set()
        run.thread.start()
        # Published once the thread can be joined: a concurrent `stop` acts on the previous run.
        _run, singleton.thread = run, run.thread
        wakeup.revive_with(None)
    return singleton


def stop(timeout: float | None = None) -> bool:
    """Finish the current batch, settle it, and end the thread.

    Returns True if it ended within `timeout` seconds (default: `stop_timeout`). May be called
    twice, and before `start`.
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
    run, thread = _run, singleton.thread
    return run if thread is not None and thread.is_alive() else None


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
    """In the child: no thread, a new lock, and connections dropped but not closed (P6)."""
    global _lock, _run
    _lock = threading.Lock()
    if _run is not None:
        wakeup.revive_with(None if _run.stopping else start)
        _run.drop()
        _run = None
    singleton.thread = None
    singleton.state = State()
    metrics.forget()


def _at_exit() -> None:
    stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
