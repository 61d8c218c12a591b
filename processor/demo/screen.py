"""The display of the demo: a live panel on a terminal, plain lines anywhere else.

Messages for people go to standard error, as in all commands; `scenario` passes counts and
sentences.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, TextIO

from processor.demo.figures import Figures, History

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY = 1.0
_WIDEST = 96
# Columns for frame, names and numbers; the rest of the line is for the curves.
_BESIDE = 46
_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_COLOURS = {"up": "green", "running": "green", "outage": "yellow", "starting": "yellow",
            "standby": "yellow", "paused": "yellow"}  # fmt: skip


class PlainScreen:
    """A line a second, and a line for each event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._history = History()
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to restore."""

    def say(self, sentence: str) -> None:
        """Show an event."""
        self._print(f"{self._history.now.at:5.1f} s  {sentence}")

    def show(self, figures: Figures) -> None:
        """Show the current figures."""
        self._history.add(figures)
        if figures.at < self._next:
            return
        self._next = figures.at + _EVERY
        accepting, committing = self._history.accepting[-1], self._history.committing[-1]
        self._print(
            f"{figures.at:5.1f} s  accepted {figures.accepted} ({accepting:.0f}/s)"
            f"  buffered {figures.buffered}  committed {figures.committed} ({committing:.0f}/s)"
            f"  replica {figures.behind} behind"
            f"  PostgreSQL {figures.postgres}"
            f"  processor {figures.processor}"
        )

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveScreen:
    """The figures with their history, and below them the events so far."""

    def __init__(self, stream: TextIO) -> None:
        # Imported here: rich takes longer to load than most commands to run, and pipes need none of
        # it.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False)
        unicode = self._console.encoding.lower().startswith("utf")
        self._blocks = _BLOCKS if unicode else _PLAIN_BLOCKS
        self._history = History()
        self._sentences: list[tuple[float, str]] = []
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._picture)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, sentence: str) -> None:
        """Show an event."""
        self._sentences.append((self._history.now.at, sentence))
        self._live.refresh()

    def show(self, figures: Figures) -> None:
        """Show the current figures."""
        self._history.add(figures)
        self._live.refresh()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel

        title = f"processor demo  {self._history.now.at:.1f} s"
        return Panel(
            Group(self._figures(), "", self._events()), title=title, title_align="left",
            padding=(1, 2), width=self._width(),
        )  # fmt: skip

    def _width(self) -> int:
        return min(self._console.width, _WIDEST)

    def _figures(self) -> RenderableType:
        from rich.table import Table

        now, history = self._history.now, self._history
        width = max(self._width() - _BESIDE, 1)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        for _ in range(2):
            grid.add_column(justify="right", no_wrap=True, min_width=9)
        grid.add_column(no_wrap=True)
        for name, count, rates, style in (
            ("accepted", now.accepted, history.accepting, "cyan"),
            ("committed", now.committed, history.committing, "green"),
        ):
            bars = curve(rates, self._blocks, width)
            grid.add_row(name, f"[b]{count:,}", f"{rates[-1]:,.0f}/s", f"[{style}]{bars}")
        for name, count, values in (
            ("buffered", now.buffered, history.buffered),
            ("replica behind", now.behind, history.behind),
        ):
            bars = curve(values, self._blocks, width)
            grid.add_row(name, f"[b]{count:,}", "", f"[yellow]{bars}")
        for name, word in (("PostgreSQL", now.postgres), ("processor", now.processor)):
            grid.add_row(name, f"[{_COLOURS.get(word, 'bold red')}]{word}")
        return grid

    def _events(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(justify="right", style="dim", no_wrap=True)
        for at, sentence in self._sentences:
            grid.add_row(f"{at:.1f}", Text(sentence))
        return grid


Screen = PlainScreen | LiveScreen


def screen(stream: TextIO | None = None) -> Screen:
    """The screen for `stream`, standard error by default."""
    stream = stream or sys.stderr
    return LiveScreen(stream) if stream.isatty() else PlainScreen(stream)


def curve(values: Sequence[float], blocks: str, width: int) -> str:
    """All values as one line of bars, the highest full; values that share a column are averaged."""
    step = max(1.0, len(values) / width)
    columns = [list(values)[int(n * step) : max(int((n + 1) * step), int(n * step) + 1)]
               for n in range(min(width, len(values)))]  # fmt: skip
    means = [sum(column) / len(column) for column in columns if column]
    top = max([*means, 1.0])
    return "".join(blocks[round(mean / top * (len(blocks) - 1))] for mean in means)
