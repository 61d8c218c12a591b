"""The pidfile of a daemon: proof that it runs is a lock on the file, not the number in it.

The lock goes with the process however that ends, so a file left behind by a kill or a power cut is
stale by itself, even where another process has got its number since. `detach` holds the file for
the life of the daemon; `service` asks it whom to signal.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path
from types import TracebackType

from processor.errors import AlreadyRunning, ConfigError

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Somebody who asks holds the lock for a moment; only what lasts longer is a daemon.
_MOMENT = 0.3


class Pidfile:
    """One file that at most one process holds."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._file = -1

    def running(self) -> int | None:
        """The pid of the daemon that holds the file; None where none does."""
        try:
            file = self._open()
        except FileNotFoundError:
            return None
        try:
            return None if _locked(file, shared=True) else _number(file)
        finally:
            os.close(file)

    def __enter__(self) -> Pidfile:
        """Take the file for this process. Raises AlreadyRunning."""
        while self._file < 0:
            file = self._open(os.O_CREAT)
            if not _locked(file):
                pid = _number(file)
                os.close(file)
                raise AlreadyRunning(f"a processor already runs, pid {pid}", hint=str(self.path))
            if self._is(file):
                self._file = file
            else:
                # It was given up and removed between our opening and our locking it.
                os.close(file)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            if self._is(file):
                self.path.unlink()  # before the lock is given up: it is nobody else's yet
            os.close(file)

    def _open(self, flags: int = 0) -> int:
        """The file, if it is ours alone: who could swap it could have us signal any process."""
        try:
            file = os.open(self.path, _FLAGS | flags, 0o600)
        except FileNotFoundError:
            if flags:
                raise ConfigError(f"pidfile {self.path}: no such directory",
                                  hint="make it, or give another --pidfile") from None
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

    def _is(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.lstat(self.path))
        except FileNotFoundError:
            return False


def _check(file: int, path: Path) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        problem = "is no plain file"
    elif found.st_uid != os.geteuid():
        problem = "belongs to another user"
    elif (text := os.pread(file, 32, 0).strip()) and not text.isdigit():
        problem = "holds something else than a pid"
    else:
        os.fchmod(file, 0o600)
        return
    raise ConfigError(f"pidfile {path}: {problem}", hint="give another --pidfile")


def _locked(file: int, *, shared: bool = False) -> bool:
    """Lock the file, or answer that somebody else has it."""
    end = time.monotonic() + _MOMENT
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if shared or time.monotonic() > end:
                return False
            time.sleep(0.01)


def _number(file: int) -> int | None:
    text = os.pread(file, 32, 0).strip()
    return int(text) if text.isdigit() else None
