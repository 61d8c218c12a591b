"""How every command speaks: data on stdout, words for people on stderr, one line an error.

The exit codes stand here, and the way from an error to its line and its code. Commands hand over
records; whether they become a table, aligned text or JSON is decided here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from processor.errors import BufferFull, ConfigError, ProcessorError, RedisRefused, Unavailable

OK = 0
FAILED = 1  # what was asked for did not hold
USAGE = 2
UNAVAILABLE = 69
CONFIGURATION = 78
INTERRUPTED = 130
PIPE_CLOSED = 141

#: Only the last column of a table folds, and not below this; else each row stands for itself, a
#: line a value, since an id that is cut or folded cannot be copied into the next command.
_ROOM_TO_FOLD = 20

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """The option --json of every command that prints data; the argument is `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(
        function
    )


def line(text: str) -> None:
    """One line of data."""
    print(clean(text))


def text(content: str) -> None:
    """Data as it is, such as a file; nothing but what we wrote ourselves may come here."""
    print(content, end="" if content.endswith("\n") else "\n")


def record(values: Mapping[str, Any]) -> None:
    """One object of JSON on a line of its own."""
    print(json.dumps(values, ensure_ascii=True, default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under their columns; on a terminal in its width, else never cut off."""
    cells = [[clean(cell(value)) for value in row] for row in rows]
    if terminal(sys.stdout):
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [[name.upper() for name in columns], *cells]:
        print("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Late: rich takes longer to load than most commands to run, and pipes need none of it.
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def grid(lines: Iterable[Sequence[str]], names: Sequence[str] = ("", "")) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
        for number, name in enumerate(names, 1):
            made.add_column(name, overflow="fold", no_wrap=bool(rows) and number < len(names))
        for each in lines:
            made.add_row(*map(Text, each))
        return made

    # By itself rich takes a terminal of few abilities for one of 80 columns.
    width, height = shutil.get_terminal_size()
    console = Console(highlight=False, width=width, height=height)
    *firm, last = (max(map(cell_len, column)) for column in zip(columns, *rows, strict=True))
    if not rows or sum(firm) + 2 * len(firm) + min(last, _ROOM_TO_FOLD) <= console.width:
        console.print(grid(rows, columns))
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        console.print(grid(zip(columns, row, strict=True)))


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


def seconds(value: float | None) -> str:
    """A length of time in its two largest units."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f}s"
    whole = round(value)
    for unit, size, below in (("d", 86_400, 3600), ("h", 3600, 60), ("m", 60, 1)):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{_SMALLER[unit]}" if rest else "")
    return f"{whole}s"


_SMALLER = {"d": "h", "h": "m", "m": "s"}


def message(text: str) -> None:
    """A line for people."""
    print(f"processor: {clean(text)}", file=sys.stderr)


def clean(text: str) -> str:
    """Text that cannot end its line or give orders to the terminal, whoever wrote it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def terminal(stream: Any) -> bool:
    """Whether a person looks at this stream; a closed one is None."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def confirm(question: str, yes: bool) -> None:
    """Go on only if it was allowed, by --yes or in answer to the question."""
    if yes:
        return
    if not (terminal(sys.stdin) and terminal(sys.stderr)):
        raise click.UsageError(f"{question}: nobody to ask, say --yes")
    if not click.confirm(f"{clean(question)}?", err=True):
        raise Declined("nothing was done")


class Declined(ProcessorError):
    """The answer was no."""


def report(error: BaseException, at: str = "") -> int:
    """Say what went wrong, and where, a line for each problem; give the exit code."""
    for each in _sentences(error):
        message(f"{at}: {each}" if at else each)
    return code_of(error)


def code_of(error: BaseException) -> int:
    """The exit code that an error ends with."""
    if isinstance(error, ConfigError):
        return CONFIGURATION
    if isinstance(error, (Unavailable, RedisRefused, BufferFull)):
        return UNAVAILABLE
    if isinstance(error, click.ClickException):
        return error.exit_code
    return FAILED


def _sentences(error: BaseException) -> list[str]:
    if isinstance(error, click.UsageError):
        return [f"{error.format_message().rstrip('.')}: {_help_of(error)}"]
    if isinstance(error, click.ClickException):
        return [error.format_message()]
    if isinstance(error, ProcessorError):
        said = Exception.__str__(error).splitlines() or [""]
        said[-1] += f": {error.hint}" if error.hint else ""
        return said
    if isinstance(error, OSError):
        return [f"{error.filename or 'output'}: {error.strerror or error}"]
    return [f"{type(error).__name__}: {error}"]


def _help_of(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "processor"
    return f"see `{path} --help`"


def silence_stdout() -> None:
    """Whoever read our output has gone: let the interpreter's last flush find nobody to blame."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return cell(value)
