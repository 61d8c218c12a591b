"""Ends the servers of a program that died, then removes their temporary directories.

Each program that starts servers has one guardian, which receives the directories through its
standard input: a line names what becomes of the directory, the directory, and its programs. It runs
as a script, without the package, so this module may import only the standard library.

PR_SET_PDEATHSIG would be simpler, but wrong: it fires when the starting *thread* ends, it does not
reach a frozen PostgreSQL backend, and it removes no directory.
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
# The line of postmaster.pid, counted from 0, with key and id of the System V segment.
SEGMENT_LINE = 6
IPC_RMID = 0
REMOVE, KEEP = "remove", "keep"

_pipes: dict[int, int] = {}


def processes(directory: Path, programs: Iterable[str]) -> list[int]:
    """The pids, lowest first, of processes of `programs` that work inside `directory`.

    Both must match, so that a person's shell in the directory is left alone.
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
    """Kill until none is left: a process can fork between the listing and the signal."""
    programs = list(programs)
    deadline = time.monotonic() + END_TIMEOUT
    while (pids := processes(directory, programs)) and time.monotonic() < deadline:
        send(pids, signal.SIGKILL)
        time.sleep(0.002)
    for pidfile in Path(directory).glob("*/postmaster.pid"):
        _release_memory(pidfile)


def _release_memory(pidfile: Path) -> None:
    """Release the System V segment of a PostgreSQL server that was killed.

    It belongs to the kernel and outlives the server, and a machine has 4,096 of them: without this,
    PostgreSQL cannot start after so many kills (ENOSPC, "No space left on device").
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        key, segment = map(int, pidfile.read_text().splitlines()[SEGMENT_LINE].split())
        libc = ctypes.CDLL(None)
        # Look it up by its key, since another segment may have the id of a removed one by now.
        if libc.shmget(key, 0, 0) == segment:
            libc.shmctl(segment, IPC_RMID, None)


def watch(directory: Path, programs: Iterable[str], *, keep: bool = False) -> None:
    """Have the programs in `directory` ended once this process has ended.

    The directory is removed then, unless `keep`.
    """
    fate = KEEP if keep else REMOVE
    line = ("\t".join([fate, os.fspath(directory), *programs]) + "\n").encode()
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
    """Start a guardian, in its own session so that Ctrl-C on the terminal does not reach it."""
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
    watched: dict[str, tuple[str, list[str]]] = {}
    poller = select.poll()
    poller.register(0, select.POLLIN)
    wait = _poll_for_death(poller, parent)
    while os.getppid() == parent:
        poller.poll(wait)
        if not _read_register(watched):
            poller.unregister(0)
            poller.poll(wait)
    _read_register(watched)
    for directory, (fate, programs) in watched.items():
        if fate == KEEP:
            end(Path(directory), programs)
        else:
            _remove(Path(directory), programs)


def _poll_for_death(poller: select.poll, parent: int) -> float | None:
    """Register a pidfd of the parent; return the poll timeout, in ms, if there is none.

    End of file on the pipe is not enough: a forked sibling can hold it open indefinitely.
    """
    try:
        poller.register(os.pidfd_open(parent), select.POLLIN)
    except (AttributeError, OSError):
        return POLL_PARENT * 1000
    return None


def _read_register(watched: dict[str, tuple[str, list[str]]]) -> bool:
    """Read new directories; False at end of file. Lines are shorter than PIPE_BUF, so whole."""
    try:
        while data := os.read(0, 65536):
            for line in data.decode().splitlines():
                fate, directory, *programs = line.split("\t")
                watched[directory] = fate, programs
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
