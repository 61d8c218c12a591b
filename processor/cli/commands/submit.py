"""`processor submit`: submits transactions from a file or a pipe, one JSON object per line.

Whatever one read returns is one chunk, so a file is submitted in large chunks and the lines of a
slow pipe at once. A line is accepted or refused as a whole. The ids of accepted lines are printed
in order, so that it is known what was accepted wherever the command ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import click

from processor.admin.sessions import OperatorSessions
from processor.cli import output
from processor.cli.options import with_sessions
from processor.errors import BufferFull, InvalidTransaction, ProcessorError
from processor.producer import submit as producer
from processor.receipts.receipt import Receipt
from processor.transaction.builder import Transaction

_READ = 256 * 1024
#: Transactions per write. All are checked before the write, so that a refusal sends none of them.
_AT_ONCE = 500
#: A line with spaces and escapes may be this many times as long as the transaction it encodes.
_LOOSE = 8

Line = tuple[int, bytes]


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--keep-going", is_flag=True, help="Report invalid lines and continue.")
@click.option("--from", "first", type=click.IntRange(1), default=1, metavar="LINE",
              help="Start at this line; the first is 1.")
@click.option("--wait", is_flag=True, help="Wait when the buffer is full.")
@output.json_option
@with_sessions
def submit(
    sessions: OperatorSessions, file: BinaryIO, keep_going: bool, first: int, wait: bool,
    as_json: bool
) -> int:
    """Submit the transactions in FILE, one JSON object per line, and print their ids.

    Without FILE, or if it is -, reads standard input.
    """
    longest = sessions.settings.buffer.transaction_bytes * _LOOSE
    submission = Submission(keep_going, wait, as_json)
    with _bar(file) as advance:
        for chunk, size in _chunks(file, longest):
            lines = [line for line in chunk if line[0] >= first]
            try:
                submission.chunk(lines)
            except KeyboardInterrupt:
                submission.interrupted(lines)
                raise
            advance(size)
            # A reader of our pipe gets the ids now, not at the end.
            print(end="", flush=True)
            if submission.ended:
                break
    return submission.close()


class Submission:
    """Submits lines in order, and counts the accepted and the refused ones."""

    def __init__(self, keep_going: bool, wait: bool, as_json: bool) -> None:
        self._keep_going = keep_going
        self._wait = wait
        self._as_json = as_json
        self._accepted = self._refused = 0
        self._next = 0
        self._code = output.OK
        self.ended = False

    def chunk(self, lines: Iterable[Line]) -> None:
        """Submit lines up to the first invalid one, or all valid ones with --keep-going."""
        valid: list[tuple[int, Transaction]] = []
        for number, content in lines:
            if not content.strip():
                continue
            try:
                valid.append((number, Transaction.parse(content.removeprefix(BOM_UTF8))))
            except InvalidTransaction as error:
                self._send(valid)
                valid = []
                self._refuse(number, error)
            if self.ended:
                return
        self._send(valid)

    def _send(self, valid: list[tuple[int, Transaction]]) -> None:
        for start in range(0, len(valid), _AT_ONCE):
            if not self.ended:
                self._write(valid[start : start + _AT_ONCE])

    def _write(self, valid: list[tuple[int, Transaction]]) -> None:
        try:
            receipts = producer.submit_many([transaction for _, transaction in valid])
        except ProcessorError:
            # One of them was refused, or the reply was lost. Submitting each again finds out which,
            # and does not double the accepted ones, since their ids are the same (rule 11).
            self._one_by_one(valid)
            return
        for (number, _), receipt in zip(valid, receipts, strict=True):
            self._accept(number, receipt)

    def _one_by_one(self, valid: list[tuple[int, Transaction]]) -> None:
        for number, transaction in valid:
            try:
                self._accept(number, self._submit(transaction))
            except InvalidTransaction as error:
                self._refuse(number, error)
            except ProcessorError as error:
                self._stop(number, error)
            if self.ended:
                return

    def _submit(self, transaction: Transaction) -> Receipt:
        while True:
            try:
                return producer.submit(transaction)
            except BufferFull as full:
                if not self._wait:
                    raise
                time.sleep(full.retry_after)

    def _accept(self, number: int, receipt: Receipt) -> None:
        self._accepted += 1
        self._next = number + 1
        if self._as_json:
            output.record({"line": number, "id": receipt.id, "lane": receipt.lane,
                           "entry": receipt.entry_id, "buffer": receipt.buffer})
        else:
            print(receipt.id)

    def _refuse(self, number: int, error: InvalidTransaction) -> None:
        if self.ended:
            return
        self._refused += 1
        self._code = output.report(error, f"line {number}")
        if not self._keep_going:
            self._end(number)

    def _stop(self, number: int, error: ProcessorError) -> None:
        """End at an error that every later line would meet too, such as an unavailable server."""
        self._code = output.report(error, f"line {number}")
        self._end(number)

    def _end(self, number: int) -> None:
        self.ended = True
        output.message(f"{self._accepted} accepted; resume with --from {number}")

    def interrupted(self, lines: list[Line]) -> None:
        """Report on Ctrl-C which lines were accepted, and which may have been."""
        first = max(self._next, lines[0][0]) if lines else self._next
        last = lines[-1][0] if lines else first
        output.message(
            f"interrupted: {self._accepted} accepted; some of lines {first} to {last} may be too"
        )

    def close(self) -> int:
        """Print the totals if invalid lines were skipped; returns the exit code."""
        if self._refused and not self.ended:
            output.message(f"{self._accepted} accepted, {self._refused} refused")
        return self._code


def _chunks(file: BinaryIO, longest: int) -> Iterator[tuple[list[Line], int]]:
    """Yield the numbered lines of each read, and how many bytes it returned."""
    number, rest = 1, b""
    while data := _read(file):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > longest:
            problem = f"line {number + len(whole)} is longer than {longest} bytes"
            raise click.BadParameter(f"{problem} (write one transaction per line)",
                                     param_hint="FILE")
        yield list(enumerate(whole, number)), len(data)
        number += len(whole)
    if rest:
        yield [(number, rest)], 0


def _read(file: BinaryIO) -> bytes:
    read = getattr(file, "read1", file.read)
    return bytes(read(_READ))


@contextlib.contextmanager
def _bar(file: BinaryIO) -> Iterator[Callable[[int], object]]:
    """Show the bytes read in a progress bar on stderr, if that is a terminal and `file` is not."""
    if not output.terminal(sys.stderr) or output.terminal(file):
        yield lambda size: None
        return
    # Imported late: rich takes longer to load than a small file takes to submit.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    total = None
    with contextlib.suppress(OSError, ValueError):
        total = os.fstat(file.fileno()).st_size or None
    bar = Progress("submit", BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), redirect_stdout=output.terminal(sys.stdout),
                   redirect_stderr=True, transient=True)
    with bar:
        task = bar.add_task("submit", total=total)
        yield lambda size: bar.advance(task, size)
