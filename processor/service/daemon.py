"""The service as a classic daemon with a pidfile: `start`, `stop` and `reload`.

For machines without systemd. `daemonize` creates the daemon, `foreground` runs in it. `start`
returns or raises what the daemon itself reports, not only that a process was started.
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
    """Start a daemon; return its pid once its first pass is over.

    The caller must have only one thread and no open connection. Raises AlreadyRunning, ConfigError,
    or ProcessorError with the reason why the daemon could not start.
    """
    pid_path, log_path = _paths(settings, pidfile, log_file, create=True)
    held = Pidfile(pid_path)
    if pid := held.running():
        raise AlreadyRunning(f"a processor is already running, pid {pid}",
                             hint=f"pidfile {held.path}")
    # The daemon works in the root directory, so make a relative path absolute first.
    source = source or os.environ.get(loader.FILE) or None
    if isinstance(source, str | os.PathLike):
        source = os.path.abspath(source)

    def work(ready: Callable[[], None]) -> int:
        return foreground.run(settings, source, ready=ready, logged_to=str(log_path))

    # The deadlines of one call to each server, and some seconds for the interpreter.
    patience = settings.database.call_timeout + settings.redis.timeout + 10
    return daemonize.daemon(work, held, log_lines.open_file(log_path), patience)


def stop(settings: Settings, *, pidfile: Name | None = None) -> int:
    """Stop the daemon and wait until it has ended; return its pid.

    Raises NotRunning, or ProcessorError if it does not end in time.
    """
    pid, process = _find(settings, pidfile)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        patience = settings.stop_timeout + 2 * foreground.CUT
        if not select.select([process], [], [], patience)[0]:
            raise ProcessorError(f"pid {pid} is still running after {patience:g} s",
                                 hint=f"`kill -9 {pid}` loses nothing; the next start resumes")
    finally:
        os.close(process)
    return pid


def reload(settings: Settings, *, pidfile: Name | None = None) -> int:
    """Signal the daemon to reload its settings; return its pid. The result is in its log.

    Raises NotRunning.
    """
    pid, process = _find(settings, pidfile)
    try:
        signal.pidfd_send_signal(process, signal.SIGHUP)
    finally:
        os.close(process)
    return pid


def _find(settings: Settings, pidfile: Name | None) -> tuple[int, int]:
    """The daemon's pid and a pidfd, which never refers to another process even if the daemon ends.

    Raises NotRunning.
    """
    held = Pidfile(_paths(settings, pidfile, None)[0])
    pid = held.running()
    try:
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        handle = -1
    if handle < 0 or held.running() != pid:
        raise NotRunning("no processor is running", hint=f"checked pidfile {held.path}")
    assert pid is not None
    return pid, handle


def _paths(
    settings: Settings,
    pidfile: Name | None,
    log_file: Name | None,
    *,
    create: bool = False,
) -> tuple[Path, Path]:
    """The paths of pidfile and log; unless given, one of each per user and namespace."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    root = os.geteuid() == 0
    run_path, log_path = (Path("/run"), Path("/var/log")) if root else (home, home)
    paths = []
    for given, base, suffix in ((pidfile, run_path, "pid"), (log_file, log_path, "log")):
        path = Path(given or base / "processor" / f"{settings.namespace}.{suffix}")
        if create and not given:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        paths.append(Path(os.path.abspath(path)))
    return paths[0], paths[1]
