"""The pidfile of a daemon: the lock on the file, not the number in it, proves that the daemon runs.

The kernel releases the lock when the process ends, in whatever way. A file left by a kill or a
power cut is therefore recognized as stale, even if another process has the same pid by now.
`daemonize` holds the file while the daemon lives; `daemon` reads from it which process to signal.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

from processor.errors import AlreadyRunning, ConfigError

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# A process that only checks holds the lock for a moment; a daemon holds it for longer.
_MOMENT = 0.3


class Pidfile:
    """One file that at most one process holds."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._file = -1

    def running(self) -> int | None:
        """The pid of the daemon that holds the file; None if there is none. Raises ConfigError."""
        try:
            file = self._open()
        except FileNotFoundError:
            return None
        try:
            return None if _locked(file, shared=True) else _pid_in(file)
        finally:
            os.close(file)

    def __enter__(self) -> Pidfile:
        """Take the file for this process. Raises AlreadyRunning or ConfigError."""
        while self._file < 0:
            file = self._open(os.O_CREAT)
            if not _locked(file):
                pid = _pid_in(file)
                os.close(file)
                raise AlreadyRunning(f"a processor is already running, pid {pid}",
                                     hint=f"pidfile {self.path}")
            if self._names(file):
                self._file = file
            else:
                # Its owner removed the file after we opened it and before we locked it.
                os.close(file)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            if self._names(file):
                self.path.unlink()  # while the lock is held, so that no other process owns the file
            os.close(file)

    def _open(self, flags: int = 0) -> int:
        """Open the file if only this user can replace it: a swapped one could name any process."""
        try:
            file = os.open(self.path, _FLAGS | flags, 0o600)
        except FileNotFoundError:
            if flags:
                raise ConfigError(f"pidfile {self.path}: no such directory",
                                  hint="create it, or give another --pidfile") from None
            raise
        except OSError as error:
            problem = "is a symbolic link" if self.path.is_symlink() else error.strerror
            raise ConfigError(f"pidfile {self.path}: {problem}",
                              hint="give another --pidfile") from None
        try:
            _check(file, self.path)
        except BaseException:
            os.close(file)
            raise
        return file

    def _names(self, file: int) -> bool:
        """Whether the path still leads to the open `file`."""
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self.path))
        except FileNotFoundError:
            return False


def _check(file: int, path: Path) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        problem = "is not a regular file"
    elif found.st_uid != os.geteuid():
        problem = "belongs to another user"
    elif (text := os.pread(file, 32, 0).strip()) and not text.isdigit():
        problem = "does not contain a process id"
    else:
        os.fchmod(file, 0o600)
        return
    raise ConfigError(f"pidfile {path}: {problem}", hint="give another --pidfile")


def _locked(file: int, *, shared: bool = False) -> bool:
    """Lock the file; False if another process holds it."""
    end = time.monotonic() + _MOMENT
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if shared or time.monotonic() > end:
                return False
            time.sleep(0.01)


def _pid_in(file: int) -> int | None:
    text = os.pread(file, 32, 0).strip()
    return int(text) if text.isdigit() else None
