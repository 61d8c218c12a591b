"""What all commands print: data on stdout, messages for people on stderr, one line per error.

It has the exit codes and turns an error into its line and its code. Commands pass records; here
they become a table, aligned text or JSON.
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
FAILED = 1  # a check failed, or the request was not fulfilled
USAGE = 2
UNAVAILABLE = 69
CONFIGURATION = 78
INTERRUPTED = 130
PIPE_CLOSED = 141

#: Only the last column of a table folds, and not below this width. A terminal too narrow for that
#: gets one line per value, since a cut or folded id cannot be copied into the next command.
_ROOM_TO_FOLD = 20

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add the option --json to a command; its argument is `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")(
        function
    )


def line(text: str) -> None:
    """Print one line of data."""
    print(clean(text))


def text(content: str) -> None:
    """Print a text as it is, such as a file of this program. Nothing is escaped."""
    print(content, end="" if content.endswith("\n") else "\n")


def record(values: Mapping[str, Any]) -> None:
    """Print one JSON object as a line."""
    print(json.dumps(values, ensure_ascii=True, default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their columns, folded to the width of a terminal; in a pipe never cut."""
    cells = [[clean(cell(value)) for value in row] for row in rows]
    if terminal(sys.stdout):
        _rich_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [[name.upper() for name in columns], *cells]:
        print("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Imported late: rich takes longer to load than most commands to run, and a pipe needs none.
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def grid(lines: Iterable[Sequence[str]], names: Sequence[str] = ("", "")) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
        for number, name in enumerate(names, 1):
            table.add_column(name, overflow="fold", no_wrap=bool(rows) and number < len(names))
        for each in lines:
            table.add_row(*map(Text, each))
        return table

    # Without these numbers rich assumes 80 columns on a dumb terminal.
    width, height = shutil.get_terminal_size()
    console = Console(highlight=False, width=width, height=height)
    *fixed, last = (max(map(cell_len, column)) for column in zip(columns, *rows, strict=True))
    if not rows or sum(fixed) + 2 * len(fixed) + min(last, _ROOM_TO_FOLD) <= console.width:
        console.print(grid(rows, columns))
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        console.print(grid(zip(columns, row, strict=True)))


def cell(value: Any) -> str:
    """Return a value as text for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


def message(text: str) -> None:
    """Print a message for people, to stderr."""
    print(f"processor: {clean(text)}", file=sys.stderr)


def clean(text: str) -> str:
    """Escape line ends and terminal control sequences, since the text may come from anywhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def terminal(stream: Any) -> bool:
    """Whether a stream is a terminal. A closed standard stream is None."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def confirm(question: str, yes: bool) -> None:
    """Return only if --yes or the answer to the question permits it.

    Raises UsageError without a terminal, and Declined if the answer is no.
    """
    if yes:
        return
    if not (terminal(sys.stdin) and terminal(sys.stderr)):
        raise click.UsageError(f"{question}: not a terminal, confirm with --yes")
    if not click.confirm(f"{clean(question)}?", err=True):
        raise Declined("nothing was changed")


class Declined(ProcessorError):
    """The operator declined."""


def report(error: BaseException, at: str = "") -> int:
    """Print an error and where it occurred, one line per problem; return the exit code."""
    for each in _sentences(error):
        message(f"{at}: {each}" if at else each)
    return code_of(error)


def code_of(error: BaseException) -> int:
    """Return the exit code for an error."""
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
        lines = Exception.__str__(error).splitlines() or [""]
        lines[-1] += f": {error.hint}" if error.hint else ""
        return lines
    if isinstance(error, OSError):
        return [f"{error.filename or 'output'}: {error.strerror or error}"]
    return [f"{type(error).__name__}: {error}"]


def _help_of(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "processor"
    return f"see `{path} --help`"


def silence_stdout() -> None:
    """Send stdout to /dev/null, so that the flush at exit does not fail on the closed pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return cell(value)
