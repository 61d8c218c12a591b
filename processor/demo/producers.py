"""A producer of the demo: one telescope as a process of its own.

Run by `stage` as `python -m processor.demo.producers NAME DIRECTORY RATE`. It submits what the
telescope says and writes the id of each transaction into a file *after* its receipt came; the
reckoning goes by these files. It ends when its standard input ends, so it cannot outlive the demo.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from processor.config import loader
from processor.demo.observatory import Telescope
from processor.errors import BufferFull, RedisUnavailable
from processor.producer import submit
from processor.transaction.builder import Transaction

#: Every so many a telescope behaves as if it had not heard the answer, and submits once more.
AGAIN_EVERY = 50
#: What an acknowledged transaction takes in the file: its id and the end of the line.
LINE = 37
SETTINGS = "processor.yml"
# Who fell behind by more than this does not hurry to make up for it.
_BEHIND = 0.5


def acknowledged(directory: Path, name: str) -> Path:
    """The file of the ids that a telescope has a receipt for."""
    return directory / f"{name}.acknowledged"


class Pace:
    """So many a second, until standard input ends."""

    def __init__(self, rate: float) -> None:
        self._step = 1.0 / rate
        self._next = time.monotonic()

    def next(self) -> bool:
        """Wait for the moment of the next transaction; False at the end."""
        now = time.monotonic()
        self._next = max(self._next + self._step, now - _BEHIND)
        return self.rest(self._next - now)

    @staticmethod
    def rest(seconds: float) -> bool:
        """Wait so long; False at the end."""
        return not select.select([0], [], [], max(0.0, seconds))[0]


def produce(telescope: Telescope, pace: Pace, receipts: int) -> None:
    """Submit until the end, writing acknowledged ids to the open file `receipts`."""
    for number, transaction in enumerate(telescope.transactions(), 1):
        if not (pace.next() and accepted(transaction, pace)):
            return
        os.write(receipts, f"{transaction.id}\n".encode())
        if number % AGAIN_EVERY == 0 and not accepted(transaction, pace):
            return


def accepted(transaction: Transaction, pace: Pace) -> bool:
    """Submit until there is a receipt; trying again is safe, the id makes it one effect."""
    while True:
        try:
            submit.submit(transaction)
            return True
        except BufferFull as full:
            patience = full.retry_after
        except RedisUnavailable:
            patience = 0.1
        if not pace.rest(patience):
            return False


def main(name: str, directory: str, rate: str) -> None:
    """One telescope's life."""
    loader.configure(Path(directory, SETTINGS))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    receipts = os.open(acknowledged(Path(directory), name), flags, 0o600)
    produce(Telescope(name), Pace(float(rate)), receipts)


if __name__ == "__main__":
    main(*sys.argv[1:])
