"""The service in the foreground: what systemd starts, and what `daemon` runs detached.

The main thread minds signals, systemd and the life of the drain thread, and calls no server: so it
can answer at once, and the watchdog is told of progress that it sees in the other thread, never of
its own (rule 31).

Exit codes of `run`: 0 after a stop that finished and settled the batch in hand; 1 after one that
was cut off, by a second signal or by `stop_timeout`, and when the thread died again and again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

from processor.config import loader
from processor.config.loader import Source
from processor.config.settings import Settings
from processor.errors import ConfigError, ProcessorError
from processor.runtime import drain_thread
from processor.service import log_lines
from processor.service.signals import Signals
from processor.service.systemd import Notifier
from processor.web import pages

log = logging.getLogger("processor.service")

STOPPED, FAILED = 0, 1
_TICK = 1.0
_STARTING = 0.05
# A thread that dies more often than this is given up. One that lived for long starts to count anew.
_LIVES = 3
_LONG = 60.0
# What a call that was cut needs to come back.
CUT = 3.0
_PORT = 5.0


def run(
    settings: Settings,
    source: Source | None = None,
    *,
    ready: Callable[[], None] = lambda: None,
    logged_to: str = "",
) -> int:
    """Run until a signal ends it; the exit code. For the main thread.

    `source` is where SIGHUP reads the settings anew, `ready` is called after the first pass, and
    `logged_to` is the file that standard error goes to, which SIGHUP opens anew.
    Raises ConfigError.
    """
    log_lines.keep_streams()
    log_lines.install(settings.log)
    # On SIGABRT, which is how the watchdog of systemd kills, each thread tells where it hangs.
    faulthandler.enable(file=2)
    loader.configure(settings)
    return Service(settings, source, ready, logged_to).run()


class Service:
    """One run of the service."""

    def __init__(
        self, settings: Settings, source: Source | None, ready: Callable[[], None], logged_to: str
    ) -> None:
        self._settings = settings
        self._source = source
        self._tell_ready = ready
        self._logged_to = logged_to
        self._notifier = Notifier()
        self._passed = threading.Event()
        self._ready = False
        self._lives, self._started = 0, time.monotonic()
        self._web: pages.Serving | None = None
        self._next_port = 0.0
        self._check(settings)

    def run(self) -> int:
        """Start, mind, stop."""
        with Signals(SIGTERM, SIGINT, SIGHUP) as signals:
            drain_thread.hooks.after_pass.append(self._passed.set)
            try:
                drain_thread.start(self._settings)
                return self._mind(signals)
            finally:
                drain_thread.hooks.after_pass.remove(self._passed.set)
                if self._web is not None:
                    self._web.close()

    def _mind(self, signals: Signals) -> int:
        while True:
            signum = signals.wait(self._tick())
            if signum == SIGHUP:
                self._reload()
            elif signum is not None:
                return self._finish(signals)
            if not self._alive():
                return FAILED
            self._tell()

    def _tick(self) -> float:
        if not self._ready:
            return _STARTING
        return min(_TICK, self._notifier.watchdog / 4 or _TICK)

    def _alive(self) -> bool:
        """Whether the thread lives, if need be again."""
        thread = drain_thread.singleton.thread
        if thread is not None and thread.is_alive():
            return True
        now = time.monotonic()
        self._lives = 1 if now - self._started > _LONG else self._lives + 1
        if self._lives > _LIVES:
            log.critical("the drain thread died %d times: giving up", self._lives)
            return False
        log.error("the drain thread died: starting it again (%d of %d)", self._lives, _LIVES)
        self._started = now
        drain_thread.start(self._settings)
        return True

    def _tell(self) -> None:
        """Let everybody know how it stands."""
        self._serve()
        if self._passed.is_set() and not self._ready:
            self._ready = True
            self._notifier.ready(_summary())
            self._tell_ready()
            log.info("started: %s", _summary())
        if self._ready:
            self._notifier.status(_summary())
            self._ping()

    def _ping(self) -> None:
        if drain_thread.progress_age(time.monotonic()) <= self._notifier.watchdog / 2:
            self._notifier.alive()

    def _serve(self) -> None:
        """The pages. While another process has the port, the work goes on without them."""
        bind = self._settings.health.bind
        if self._web is not None or not bind or time.monotonic() < self._next_port:
            return
        try:
            self._web = pages.serve(self._settings.health)
        except OSError as error:
            if not self._next_port:
                # Python repeats the address behind what the system says.
                why = str(error.strerror).partition(" (while")[0]
                log.error("no /health: cannot listen on %s: %s (change health.bind)", bind, why)
            self._next_port = time.monotonic() + _PORT

    def _reload(self) -> None:
        self._notifier.reloading()
        outcome = "reloaded"
        try:
            self._use(loader.load(self._source))
        except Exception as error:
            # Whatever is wrong with the new settings, the old ones have proved themselves.
            outcome = "reload refused, the old settings stay"
            reason = str(error) if isinstance(error, ProcessorError) else type(error).__name__
            for line in reason.splitlines():
                log.error("%s: %s", outcome, line)
        self._notifier.ready(f"{outcome}; {_summary()}")

    def _use(self, settings: Settings) -> None:
        self._check(settings)
        kept = drain_thread.reload(settings)
        if self._logged_to:
            log_lines.reopen(self._logged_to)
        log_lines.install(settings.log)
        self._settings = settings
        log.info("reloaded: the new settings hold from the next pass on")
        if kept:
            log.warning("these change with a restart only: %s", ", ".join(kept))

    def _check(self, settings: Settings) -> None:
        """One legal call, or wait, must not look like a hang (rule 31)."""
        limit = self._notifier.watchdog
        for name, value in (
            ("database.call_timeout", settings.database.call_timeout),
            ("redis.timeout", settings.redis.timeout),
            ("interval", settings.interval),
        ):
            if limit and value >= limit:
                raise ConfigError(
                    f"{name} = {value:g} s is not below WatchdogSec = {limit:g} s of the unit",
                    hint="lower the one or raise the other",
                )

    def _finish(self, signals: Signals) -> int:
        """Let the thread finish its batch; a second signal, or too long a wait, cuts it off."""
        self._notifier.stopping("finishing the batch in hand")
        log.info("stopping: the batch in hand is finished and settled")
        end = time.monotonic() + self._settings.stop_timeout
        while not drain_thread.stop(timeout=0.1):
            self._ping()
            if signals.wait(0) in (SIGTERM, SIGINT):
                return self._cut("a second signal")
            if time.monotonic() > end:
                return self._cut("not finished within stop_timeout")
        log.info("stopped")
        return STOPPED

    def _cut(self, why: str) -> int:
        """Cut the call in hand. If it was a COMMIT, the ledger tells the next start (rule 13)."""
        log.warning("aborting: %s; the next start does what this one leaves", why)
        drain_thread.abort()
        if not drain_thread.stop(timeout=CUT):
            # It hangs in no call of ours, and the interpreter would wait for it.
            log.error("the drain thread does not end: leaving without it")
            os._exit(FAILED)
        return FAILED


def _summary() -> str:
    state: dict[str, Any] = drain_thread.state()
    told = state["background_processor"]
    waiting = sum(lane["depth"] for lane in state["lanes"].values())
    reason = f" ({told['reason']})" if told["reason"] else ""
    return (f"{told['status']}{reason}: {told['transactions_processed']} committed,"
            f" {waiting} waiting, {told['dead_letters']} dead")
