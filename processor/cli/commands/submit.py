"""`processor submit`: transactions from a file or a pipe, one JSON a line.

What one read brings is one chunk: a file goes in large ones, and a pipe that speaks now and then is
heard at once. A line is atomic; the ids of accepted lines are printed in their order, so that what
was accepted is known wherever it ends.
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

from processor.admin.sessions import OperatorSessions, with_servers
from processor.cli import output
from processor.errors import BufferFull, InvalidTransaction, ProcessorError
from processor.producer import submit as producer
from processor.receipts.receipt import Receipt
from processor.transaction.builder import Transaction

_READ = 256 * 1024
#: One write each, so that a refusal is known before anything of it was sent.
_AT_ONCE = 500
#: JSON may be written with blanks and escapes: as bytes it may be this many times as long.
_LOOSE = 8

Line = tuple[int, bytes]


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--keep-going", is_flag=True, help="Report bad lines and go on with the next.")
@click.option("--from", "first", type=click.IntRange(1), default=1, metavar="LINE",
              help="Begin at this line.")
@click.option("--wait", is_flag=True, help="Wait for room when the buffer is full.")
@output.json_option
@with_servers
def submit(
    servers: OperatorSessions, file: BinaryIO, keep_going: bool, first: int, wait: bool,
    as_json: bool
) -> int:
    """Submit the transactions in FILE (-: standard input), one JSON a line; print their ids."""
    longest = servers.settings.buffer.transaction_bytes * _LOOSE
    submission = Submission(keep_going, wait, as_json)
    with _bar(file) as advance:
        for chunk, size in _chunks(file, longest):
            lines = [line for line in chunk if line[0] >= first]
            try:
                submission.chunk(lines)
            except KeyboardInterrupt:
                submission.leave(lines)
                raise
            advance(size)
            # Who reads our pipe learns what was accepted when it was, not at the end.
            print(end="", flush=True)
            if submission.ended:
                break
    return submission.close()


class Submission:
    """Lines on their way in: what was accepted, what was refused."""

    def __init__(self, keep_going: bool, wait: bool, as_json: bool) -> None:
        self._keep_going = keep_going
        self._wait = wait
        self._as_json = as_json
        self._accepted = self._refused = 0
        self._next = 0
        self._code = output.OK
        self.ended = False

    def chunk(self, lines: Iterable[Line]) -> None:
        """Submit these lines, in order, up to the first bad one unless told to keep going."""
        good: list[tuple[int, Transaction]] = []
        for number, content in lines:
            if not content.strip():
                continue
            try:
                good.append((number, Transaction.parse(content.removeprefix(BOM_UTF8))))
            except InvalidTransaction as error:
                self._send(good)
                good = []
                self._refuse(number, error)
            if self.ended:
                return
        self._send(good)

    def _send(self, good: list[tuple[int, Transaction]]) -> None:
        for start in range(0, len(good), _AT_ONCE):
            if not self.ended:
                self._write(good[start : start + _AT_ONCE])

    def _write(self, good: list[tuple[int, Transaction]]) -> None:
        try:
            receipts = producer.submit_many([transaction for _, transaction in good])
        except ProcessorError:
            # One of them was refused, or the reply is lost: find out which. Sending again what was
            # accepted changes nothing, the ids are the same (rule 11).
            self._one_by_one(good)
            return
        for (number, _), receipt in zip(good, receipts, strict=True):
            self._accept(number, receipt)

    def _one_by_one(self, good: list[tuple[int, Transaction]]) -> None:
        for number, transaction in good:
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
        """A server is away: nothing behind this line can be submitted either."""
        self._code = output.report(error, f"line {number}")
        self._end(number)

    def _end(self, number: int) -> None:
        self.ended = True
        output.message(f"{self._accepted} accepted; go on with --from {number}")

    def leave(self, lines: list[Line]) -> None:
        """Ctrl-C: say how far it came."""
        first = max(self._next, lines[0][0]) if lines else self._next
        last = lines[-1][0] if lines else first
        output.message(
            f"interrupted: {self._accepted} accepted; of lines {first} to {last} some may be"
        )

    def close(self) -> int:
        """The exit code, with a last word if lines were passed over."""
        if self._refused and not self.ended:
            output.message(f"{self._accepted} accepted, {self._refused} refused")
        return self._code


def _chunks(file: BinaryIO, longest: int) -> Iterator[tuple[list[Line], int]]:
    """Numbered lines, those of one read together, and how many bytes were read."""
    number, rest = 1, b""
    while data := _read(file):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > longest:
            problem = f"line {number + len(whole)} is longer than {longest} bytes"
            raise click.BadParameter(f"{problem} (write one transaction a line)", param_hint="FILE")
        yield list(enumerate(whole, number)), len(data)
        number += len(whole)
    if rest:
        yield [(number, rest)], 0


def _read(file: BinaryIO) -> bytes:
    read = getattr(file, "read1", file.read)
    return bytes(read(_READ))


@contextlib.contextmanager
def _bar(file: BinaryIO) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, by the bytes of the file; none in a pipe, or while one types."""
    if not output.terminal(sys.stderr) or output.terminal(file):
        yield lambda size: None
        return
    # Late: rich takes longer to load than a small file to submit, and pipes need none of it.
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
