"""A producer of the demo: one telescope as a process.

`stage` runs it as `python -m processor.demo.producers NAME DIRECTORY RATE`. It submits the
transactions of the telescope and writes the id of each into a file *after* it has the receipt; the
reckoning compares these files with the tables. It exits when its standard input ends, so it cannot
outlive the demo.
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

#: After each this many transactions, a telescope submits one again, as if its reply were lost.
AGAIN_EVERY = 50
#: Bytes of an acknowledged transaction in the file: its id and the end of the line.
LINE = 37
SETTINGS = "processor.yml"
# A producer that falls behind by more than this does not catch up.
_BEHIND = 0.5


def acknowledged(directory: Path, name: str) -> Path:
    """The file with the ids that a telescope holds receipts for."""
    return directory / f"{name}.acknowledged"


class Pace:
    """The rate of the transactions, until standard input ends; `rate` is per second."""

    def __init__(self, rate: float) -> None:
        self._step = 1.0 / rate
        self._next = time.monotonic()

    def next(self) -> bool:
        """Wait until the next transaction is due; False once standard input has ended."""
        now = time.monotonic()
        self._next = max(self._next + self._step, now - _BEHIND)
        return self.rest(self._next - now)

    @staticmethod
    def rest(seconds: float) -> bool:
        """Wait for so many seconds; False once standard input has ended."""
        return not select.select([0], [], [], max(0.0, seconds))[0]


def produce(telescope: Telescope, pace: Pace, receipts: int) -> None:
    """Submit until standard input ends; write acknowledged ids to the open file `receipts`."""
    for number, transaction in enumerate(telescope.transactions(), 1):
        if not (pace.next() and accepted(transaction, pace)):
            return
        os.write(receipts, f"{transaction.id}\n".encode())
        if number % AGAIN_EVERY == 0 and not accepted(transaction, pace):
            return


def accepted(transaction: Transaction, pace: Pace) -> bool:
    """Submit until there is a receipt; repeating is safe, since the id makes it one effect.

    False once standard input has ended.
    """
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
    """Run one telescope."""
    loader.configure(Path(directory, SETTINGS))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    receipts = os.open(acknowledged(Path(directory), name), flags, 0o600)
    produce(Telescope(name), Pace(float(rate)), receipts)


if __name__ == "__main__":
    main(*sys.argv[1:])
