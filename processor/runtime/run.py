"""One life of the drain thread: its loop, its passes, and the hooks around them.

The loop waits on the Event for at most the delay that the last pass returned. It clears the Event
before the pass looks for work, so that a wake-up during the pass is not lost (rule 29). There is no
other wait and no sleep in this thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from processor import crashpoint
from processor.config.settings import Settings
from processor.drain.drain import Drain
from processor.runtime.side_threads import SideThreads
from processor.telemetry import faults, metrics, wakeup
from processor.telemetry.progress import Progress
from processor.telemetry.status import State

log = logging.getLogger("processor.runtime")

#: Seconds that the side threads get to end.
_SIDE_THREADS_END = 2.0

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
    """One life of the thread, with its own stop flag, drain and side threads.

    Once `stopping` is set it stays set: a later start makes another `Run`.
    """

    def __init__(self, settings: Settings, singleton: Singleton, hooks: Hooks) -> None:
        self.settings = settings
        #: Settings for the next pass on, given by a reload.
        self.next_settings: Settings | None = None
        self.stopping = False
        self.progress = Progress()
        self.pid = os.getpid()
        self.instance = f"{socket.gethostname()}:{self.pid}:{secrets.token_hex(3)}"
        self._singleton = singleton
        self._hooks = hooks
        self._counted = _counted()
        self._side_threads, self.drain = self._made_from(settings)
        self.thread = threading.Thread(target=self._live, name="processor", daemon=True)
        self._begun = threading.Event()

    def begin(self) -> None:
        """Start the thread."""
        try:
            self.thread.start()
        finally:
            self._begun.set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs or is about to begin."""
        return self.thread.is_alive() or not self._begun.is_set()

    def wait(self, timeout: float) -> bool:
        """Whether the thread has ended after at most `timeout` seconds."""
        if self.thread is threading.current_thread():
            return False
        end = time.monotonic() + timeout
        if self._begun.wait(timeout) and self.thread.is_alive():
            self.thread.join(max(0.0, end - time.monotonic()))
        return not self.alive

    def observed(self, state: State, **patience: float) -> State:
        """The state with what the servers show now. For other threads."""
        beside = self._side_threads
        shown = beside.observer.shown(state, **patience)
        return replace(shown, replicas=beside.replica_watch.states())

    def abort(self) -> None:
        """Stop, and cut the server calls in progress. For another thread."""
        self.stopping = True
        self.drain.database.abort()
        self.drain.redis.abort()

    def drop(self) -> None:
        """Forget all connections without closing them, in a forked child (P6)."""
        self.drain.database.drop()
        self.drain.redis.drop()
        self._side_threads.drop()

    def _made_from(self, settings: Settings) -> tuple[SideThreads, Drain]:
        side_threads = SideThreads(
            settings, self.instance, self._singleton.event,
            lambda: self.drain.postgres(time.monotonic()),
        )  # fmt: skip
        drain = Drain(
            settings, self.instance, self.progress, lambda: self.stopping,
            side_threads.replica_watch,
        )  # fmt: skip
        return side_threads, drain

    def _live(self) -> None:
        _call(self._hooks.on_start)
        _attempt("starting the threads beside this one", self._side_threads.start)
        try:
            self._loop()
        finally:
            crashpoint.reach("stop-seen")
            self._leave()
            _call(self._hooks.on_stop)
            last = self._singleton.state
            self._singleton.state = replace(last, status="stopped", reason="", lanes={})

    def _leave(self) -> None:
        _attempt("giving up the lanes", self.drain.leave)
        _attempt("ending the threads beside this one",
                 partial(self._side_threads.stop, _SIDE_THREADS_END))  # fmt: skip

    def _loop(self) -> None:
        event, delay = self._singleton.event, 0.0
        while True:
            _attempt("listening for other processes", self._listen)
            event.wait(delay)
            event.clear()
            self._side_threads.doorbell.rest()
            if self.stopping:
                return
            _call(self._hooks.before_pass)
            delay = self._guarded_pass()
            _call(self._hooks.after_pass)

    def _listen(self) -> None:
        self._side_threads.doorbell.wait_for(self.drain.streams())

    def _guarded_pass(self) -> float:
        """Run one pass; return the seconds to wait before the next one. Never raises."""
        try:
            delay = self._pass()
            self._publish()
            return delay
        except Exception as error:
            # A defect must not end the thread. Its message may hold values (rule 19), so only its
            # place is reported.
            self.progress.failed(f"a pass failed and will be retried: {faults.place(error)}")
            metrics.count("verdicts", verdict="defect")
            log.error("%s", self.progress.failure)
            _attempt("giving up the lanes", partial(self.drain.leave, ends=False))
            self._singleton.state = replace(self._singleton.state, reason=self.progress.failure)
            _attempt("publishing the state of a failed pass", self._publish)
            return max(1.0, self.settings.interval)

    def _pass(self) -> float:
        settings, self.next_settings = self.next_settings, None
        if settings is not None:
            self._reload(settings)
        started = time.monotonic()
        delay = self.drain.run(started)
        self.progress.passed()
        if log.isEnabledFor(logging.DEBUG):
            self._log_pass(time.monotonic() - started, delay)
        return delay

    def _publish(self) -> None:
        state = self.drain.state()
        self.drain.publish(state)
        self._singleton.state = state

    def _log_pass(self, took: float, delay: float) -> None:
        before, self._counted = self._counted, _counted()
        committed, batches = (b - a for a, b in zip(before, self._counted, strict=True))
        log.debug("pass: %d committed in %d batches, %.1f ms, next in %.3f s",
                  committed, batches, 1000 * took, delay)  # fmt: skip

    def _reload(self, settings: Settings) -> None:
        # First of all, so that settings which fail here leave the thread as it was.
        side_threads, drain = self._made_from(settings)
        self._leave()
        side_threads.replica_watch.inherit(self._side_threads.replica_watch)
        self.settings, self._side_threads, self.drain = settings, side_threads, drain
        _attempt("starting the threads beside this one", self._side_threads.start)
        log.debug("the reloaded settings are used from this pass on")


def _counted() -> tuple[int, int]:
    return int(metrics.value("committed")), int(metrics.value("batches"))


def _call(functions: list[Hook]) -> None:
    for function in list(functions):
        _attempt(f"hook {getattr(function, '__name__', '?')}", function)


def _attempt(what: str, step: Hook) -> None:
    """Do a step whose failure must not keep the thread from the next one."""
    try:
        step()
    except Exception as error:
        log.error("%s failed: %s", what, faults.place(error))
