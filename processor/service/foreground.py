"""The service in the foreground: systemd starts it, and `daemon` runs it detached.

The main thread handles signals, reports to systemd and restarts a dead drain thread. It calls no
server, so that it reacts at once, and it feeds the watchdog only with progress of the drain thread,
never with its own (rule 31).

Exit codes of `run`: 0 after a stop that finished and settled the current batch; 1 after a stop that
a second signal or `stop_timeout` cut off, and after the thread died several times in a row.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from signal import SIGHUP, SIGINT, SIGTERM

from processor.config import loader
from processor.config.loader import Source
from processor.config.settings import Settings
from processor.errors import ConfigError, ProcessorError
from processor.runtime import drain_thread
from processor.service import log_lines
from processor.service.signals import Signals
from processor.service.systemd import Notifier
from processor.web import server

log = logging.getLogger("processor.service")

STOPPED, FAILED = 0, 1
_TICK = 1.0
_STARTING = 0.05
# How often a thread that dies is restarted; a thread that lived for longer than _LONG resets the
# count.
_RESTARTS = 3
_LONG = 60.0
#: Seconds that a call needs to return after it was cut.
CUT = 3.0
_PORT_RETRY = 5.0


def run(
    settings: Settings,
    source: Source | None = None,
    *,
    ready: Callable[[], None] = lambda: None,
    logged_to: str = "",
) -> int:
    """Run until a signal ends the service; return the exit code. For the main thread.

    SIGHUP reloads the settings from `source` and reopens `logged_to`, the file that standard error
    goes to. `ready` is called after the first pass. Raises ConfigError.
    """
    log_lines.keep_streams()
    log_lines.install(settings.log)
    # On SIGABRT, with which the watchdog of systemd kills, print where each thread hangs.
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
        self._call_when_ready = ready
        self._logged_to = logged_to
        self._notifier = Notifier()
        self._passed = threading.Event()
        self._ready = False
        self._deaths, self._started = 0, time.monotonic()
        self._web: server.Server | None = None
        self._next_port = 0.0
        self._check(settings)

    def run(self) -> int:
        """Start the drain thread, watch it until a signal, stop it."""
        with Signals(SIGTERM, SIGINT, SIGHUP) as signals:
            drain_thread.hooks.after_pass.append(self._passed.set)
            try:
                drain_thread.start(self._settings)
                return self._watch(signals)
            finally:
                drain_thread.hooks.after_pass.remove(self._passed.set)
                if self._web is not None:
                    self._web.close()

    def _watch(self, signals: Signals) -> int:
        while True:
            signum = signals.wait(self._tick())
            if signum == SIGHUP:
                self._reload()
            elif signum is not None:
                return self._finish(signals)
            if not self._alive():
                return FAILED
            self._report()

    def _tick(self) -> float:
        if not self._ready:
            return _STARTING
        return min(_TICK, self._notifier.watchdog / 4 or _TICK)

    def _alive(self) -> bool:
        """Whether the drain thread runs; a dead one is restarted, a limited number of times."""
        thread = drain_thread.singleton.thread
        if thread is not None and thread.is_alive():
            return True
        now = time.monotonic()
        self._deaths = 1 if now - self._started > _LONG else self._deaths + 1
        if self._deaths > _RESTARTS:
            log.critical("the drain thread died %d times: giving up", self._deaths)
            return False
        log.error("the drain thread died: restarting it (%d of %d)", self._deaths, _RESTARTS)
        self._started = now
        drain_thread.start(self._settings)
        return True

    def _report(self) -> None:
        """Report the state to systemd, to the starting terminal and on the pages."""
        self._serve()
        if self._passed.is_set() and not self._ready:
            self._ready = True
            self._notifier.ready(_summary())
            self._call_when_ready()
            log.info("started: %s", _summary())
        if self._ready:
            self._notifier.status(_summary())
            self._ping()

    def _ping(self) -> None:
        if drain_thread.progress_age(time.monotonic()) <= self._notifier.watchdog / 2:
            self._notifier.alive()

    def _serve(self) -> None:
        """Serve the pages. While another process has the port, work continues without them."""
        bind = self._settings.health.bind
        if self._web is not None or not bind or time.monotonic() < self._next_port:
            return
        try:
            self._web = server.serve(self._settings.health)
        except OSError as error:
            if not self._next_port:
                # Python appends the address to the message of the system.
                why = str(error.strerror).partition(" (while")[0]
                log.error("/health is not served: cannot listen on %s: %s (change health.bind)",
                          bind, why)
            self._next_port = time.monotonic() + _PORT_RETRY

    def _reload(self) -> None:
        self._notifier.reloading()
        outcome = "reloaded"
        try:
            self._use(loader.load(self._source))
        except Exception as error:
            # Keep running on any error: the old settings are known to work.
            outcome = "reload refused, the old settings stay in force"
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
        log.info("reloaded: new settings take effect with the next pass")
        if kept:
            log.warning("these need a restart to take effect: %s", ", ".join(kept))

    def _check(self, settings: Settings) -> None:
        """Refuse limits under which one permitted call or wait looks like a hang (rule 31)."""
        limit = self._notifier.watchdog
        for name, value in (
            ("database.call_timeout", settings.database.call_timeout),
            ("redis.timeout", settings.redis.timeout),
            ("interval", settings.interval),
        ):
            if limit and value >= limit:
                raise ConfigError(
                    f"{name} = {value:g} s must be below WatchdogSec = {limit:g} s of the unit",
                    hint=f"lower {name} or raise WatchdogSec",
                )

    def _finish(self, signals: Signals) -> int:
        """Let the thread finish its batch; a second signal or `stop_timeout` cuts it off."""
        self._notifier.stopping("finishing the current batch")
        log.info("stopping: finishing and settling the current batch")
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
        """Cut the current call. If it is a COMMIT, the next start checks the ledger (rule 13)."""
        log.warning("aborting: %s; the next start resumes the work", why)
        drain_thread.abort()
        if not drain_thread.stop(timeout=CUT):
            # It hangs outside our calls, and the interpreter would wait for it at exit.
            log.error("the drain thread did not end: exiting without it")
            os._exit(FAILED)
        return FAILED


def _summary() -> str:
    state = drain_thread.observed(patience=0.0)
    depths = [lane.depth for lane in state.lanes.values() if lane.depth is not None]
    waiting = f" {sum(depths)} waiting," if depths else ""
    reason = f" ({state.reason})" if state.reason else ""
    return (f"{state.status}{reason}: {state.processed} committed,{waiting}"
            f" {state.dead_letters} dead")
