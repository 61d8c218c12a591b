"""Ends what a dead parent left behind: server processes first, then their directories.

One guardian per program that starts servers, told of each directory through its standard input. It
is also run as a script, without the package, so it may import nothing but the standard library.

PR_SET_PDEATHSIG would be less, and wrong: it fires when the starting *thread* ends, it reaches no
frozen PostgreSQL backend, and it removes no directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

END_TIMEOUT = 10.0
POLL_PARENT = 0.2
# PostgreSQL notes the key and the id of its System V segment on this line, counted from 0.
SEGMENT_LINE = 6
IPC_RMID = 0

_pipes: dict[int, int] = {}


def processes(directory: Path, programs: Iterable[str]) -> list[int]:
    """The pids, lowest first, of `programs` that work inside `directory`.

    Both are asked for: a person's shell that stands in the directory is none of our business.
    """
    names, inside = set(programs), os.fspath(directory)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(pid for pid in pids if _works_inside(pid, inside, names))


def _works_inside(pid: int, directory: str, programs: set[str]) -> bool:
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
        program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return False
    return os.path.basename(program) in programs and (cwd + "/").startswith(directory + "/")


def send(pids: Iterable[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def end(directory: Path, programs: Iterable[str]) -> None:
    """Kill until none is left: a process can fork between the look and the signal."""
    programs = list(programs)
    deadline = time.monotonic() + END_TIMEOUT
    while (pids := processes(directory, programs)) and time.monotonic() < deadline:
        send(pids, signal.SIGKILL)
        time.sleep(0.002)
    for notes in Path(directory).glob("*/postmaster.pid"):
        _release_memory(notes)


def _release_memory(notes: Path) -> None:
    """Give back the System V segment of a PostgreSQL server that was killed.

    It belongs to the kernel and outlives everybody, and a machine has 4,096: without this, so many
    kills later no PostgreSQL starts there any more (ENOSPC, "No space left on device").
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        key, segment = map(int, notes.read_text().splitlines()[SEGMENT_LINE].split())
        libc = ctypes.CDLL(None)
        # Asked by its key, since the id of a segment that is gone may be a stranger's by now.
        if libc.shmget(key, 0, 0) == segment:
            libc.shmctl(segment, IPC_RMID, None)


def watch(directory: Path, programs: Iterable[str]) -> None:
    """Have `directory` removed, and the programs in it ended, when this process is gone."""
    line = ("\t".join([os.fspath(directory), *programs]) + "\n").encode()
    pid = os.getpid()
    if pid not in _pipes:
        _pipes[pid] = _spawn(pid)
    try:
        os.write(_pipes[pid], line)
    except BrokenPipeError:
        os.close(_pipes[pid])
        _pipes[pid] = _spawn(pid)
        os.write(_pipes[pid], line)


def _spawn(parent: int) -> int:
    """A session of its own, since a Ctrl-C on the terminal is not for the guardian."""
    read, write = os.pipe()
    python = sys.executable or shutil.which("python3") or "python3"
    os.posix_spawn(
        python,
        [python, "-I", "-S", os.path.abspath(__file__), str(parent)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, read, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
    )
    os.close(read)
    return write


def _guard(parent: int) -> None:
    os.set_blocking(0, False)
    watched: dict[str, list[str]] = {}
    poller = select.poll()
    poller.register(0, select.POLLIN)
    wait = _poll_for_death(poller, parent)
    while os.getppid() == parent:
        poller.poll(wait)
        if not _read_register(watched):
            poller.unregister(0)
            poller.poll(wait)
    _read_register(watched)
    for directory, programs in watched.items():
        _remove(Path(directory), programs)


def _poll_for_death(poller: select.poll, parent: int) -> float | None:
    """Not by end of file: a forked sibling of ours can hold the pipe open for ever."""
    try:
        poller.register(os.pidfd_open(parent), select.POLLIN)
    except (AttributeError, OSError):
        return POLL_PARENT * 1000
    return None


def _read_register(watched: dict[str, list[str]]) -> bool:
    """Whether the pipe may bring more. Lines are shorter than PIPE_BUF, so they come whole."""
    try:
        while data := os.read(0, 65536):
            for line in data.decode().splitlines():
                directory, *programs = line.split("\t")
                watched[directory] = programs
    except BlockingIOError:
        return True
    return False


def _remove(directory: Path, programs: list[str]) -> None:
    deadline = time.monotonic() + END_TIMEOUT
    while directory.exists() and time.monotonic() < deadline:
        end(directory, programs)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]))
