"""The service as a daemon of old, with a pidfile: `start`, `stop` and `reload`.

For machines without systemd. `detach` makes the daemon, `service` runs in it; whoever calls these
gets the answer of the daemon itself, not only that of having started it.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from processor.config import loader
from processor.config.loader import Source
from processor.config.settings import Settings
from processor.errors import AlreadyRunning, NotRunning, ProcessorError
from processor.service import daemonize, foreground, log_lines
from processor.service.pidfile import Pidfile

Name = str | os.PathLike[str]


def start(
    settings: Settings,
    source: Source | None = None,
    *,
    pidfile: Name | None = None,
    log_file: Name | None = None,
) -> int:
    """Start a daemon; its pid, once its first pass is over.

    The caller has one thread and holds no connection. Raises AlreadyRunning, ConfigError, and
    ProcessorError with what the daemon said when it could not start.
    """
    pid_path, log_path = _places(settings, pidfile, log_file, make=True)
    held = Pidfile(pid_path)
    if pid := held.running():
        raise AlreadyRunning(f"a processor already runs, pid {pid}", hint=str(held.path))
    # The daemon's directory is the root: what is relative now must not be so there.
    source = source or os.environ.get(loader.FILE) or None
    if isinstance(source, str | os.PathLike):
        source = os.path.abspath(source)

    def work(ready: Callable[[], None]) -> int:
        return foreground.run(settings, source, ready=ready, logged_to=str(log_path))

    # Each server gets its deadline in the first pass, and the interpreter some seconds.
    patience = settings.database.call_timeout + settings.redis.timeout + 10
    return daemonize.daemon(work, held, log_lines.open_file(log_path), patience)


def stop(settings: Settings, *, pidfile: Name | None = None) -> int:
    """Stop the daemon and wait until it is gone; its pid. Raises NotRunning, ProcessorError."""
    pid, process = _find(settings, pidfile)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        patience = settings.stop_timeout + 2 * foreground.CUT
        if not select.select([process], [], [], patience)[0]:
            raise ProcessorError(f"pid {pid} still runs after {patience:g} s",
                                 hint=f"`kill -9 {pid}` loses nothing, the next start goes on")
    finally:
        os.close(process)
    return pid


def reload(settings: Settings, *, pidfile: Name | None = None) -> int:
    """Have the daemon read its settings anew; its pid. What it says to them is in its log."""
    pid, process = _find(settings, pidfile)
    try:
        signal.pidfd_send_signal(process, signal.SIGHUP)
    finally:
        os.close(process)
    return pid


def _find(settings: Settings, pidfile: Name | None) -> tuple[int, int]:
    """The daemon's pid, and a handle that can mean no other process even if it ends now."""
    held = Pidfile(_places(settings, pidfile, None)[0])
    pid = held.running()
    try:
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        handle = -1
    if handle < 0 or held.running() != pid:
        raise NotRunning("no processor runs here", hint=f"looked at {held.path}")
    assert pid is not None
    return pid, handle


def _places(
    settings: Settings,
    pidfile: Name | None,
    log_file: Name | None,
    *,
    make: bool = False,
) -> tuple[Path, Path]:
    """Where the pidfile and the log are unless given: one of each a user and namespace."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    root = os.geteuid() == 0
    run_path, log_path = (Path("/run"), Path("/var/log")) if root else (home, home)
    paths = []
    for given, base, suffix in ((pidfile, run_path, "pid"), (log_file, log_path, "log")):
        path = Path(given or base / "processor" / f"{settings.namespace}.{suffix}")
        if make and not given:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        paths.append(Path(os.path.abspath(path)))
    return paths[0], paths[1]
