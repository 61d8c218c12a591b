"""How the demo is shown: a picture that moves on a terminal, plain lines anywhere else.

Words for people go to standard error, as everywhere; `scenario` hands over looks and sentences.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from processor.demo.figures import Course, Figures

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY = 1.0
_WIDEST = 96
# What frame, names and numbers leave of a line is for the curves.
_BESIDE = 46
_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_COLOURS = {"up": "green", "running": "green", "outage": "yellow", "starting": "yellow",
            "standby": "yellow", "paused": "yellow"}  # fmt: skip


class PlainScreen:
    """A line a second, and one for each thing that happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._course = Course()
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put back."""

    def say(self, sentence: str) -> None:
        """Something happens."""
        self._print(f"{self._course.now.at:5.1f} s  {sentence}")

    def show(self, figures: Figures) -> None:
        """The figures of now."""
        self._course.add(figures)
        if figures.at < self._next:
            return
        self._next = figures.at + _EVERY
        self._print(
            f"{figures.at:5.1f} s  accepted {figures.accepted} ({self._course.accepting[-1]:.0f}/s)"
            f"  buffered {figures.buffered}  committed {figures.committed}"
            f" ({self._course.committing[-1]:.0f}/s)  replica {figures.behind} behind"
            f"  PostgreSQL {figures.postgres}"
            f"  processor {figures.processor}"
        )

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveScreen:
    """The figures with their course, and below them what happened so far."""

    def __init__(self, stream: TextIO) -> None:
        # Late: rich takes longer to load than most commands to run, and pipes need none of it.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False)
        unicode = self._console.encoding.lower().startswith("utf")
        self._blocks = _BLOCKS if unicode else _PLAIN_BLOCKS
        self._course = Course()
        self._said: list[tuple[float, str]] = []
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._picture)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, sentence: str) -> None:
        """Something happens."""
        self._said.append((self._course.now.at, sentence))
        self._live.refresh()

    def show(self, figures: Figures) -> None:
        """The figures of now."""
        self._course.add(figures)
        self._live.refresh()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel

        title = f"processor demo  {self._course.now.at:.1f} s"
        return Panel(
            Group(self._figures(), "", self._events()), title=title, title_align="left",
            padding=(1, 2), width=self._width(),
        )  # fmt: skip

    def _width(self) -> int:
        return min(self._console.width, _WIDEST)

    def _figures(self) -> RenderableType:
        from rich.table import Table

        now, course = self._course.now, self._course
        width = max(self._width() - _BESIDE, 1)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        for _ in range(2):
            grid.add_column(justify="right", no_wrap=True, min_width=9)
        grid.add_column(no_wrap=True)
        for name, count, speeds, style in (
            ("accepted", now.accepted, course.accepting, "cyan"),
            ("committed", now.committed, course.committing, "green"),
        ):
            bars = curve(speeds, self._blocks, width)
            grid.add_row(name, f"[b]{count:,}", f"{speeds[-1]:,.0f}/s", f"[{style}]{bars}")
        for name, count, values in (
            ("buffered", now.buffered, course.buffered),
            ("replica behind", now.behind, course.behind),
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
        for at, sentence in self._said:
            grid.add_row(f"{at:.1f}", Text(sentence))
        return grid


Screen = PlainScreen | LiveScreen


def screen(stream: TextIO | None = None) -> Screen:
    """The right one for where the words go."""
    stream = stream or sys.stderr
    return LiveScreen(stream) if stream.isatty() else PlainScreen(stream)


def curve(values: Sequence[float], blocks: str, width: int) -> str:
    """All values as one line of bars, the highest full; those that share a column as their mean."""
    step = max(1.0, len(values) / width)
    columns = [list(values)[int(n * step) : max(int((n + 1) * step), int(n * step) + 1)]
               for n in range(min(width, len(values)))]  # fmt: skip
    means = [sum(column) / len(column) for column in columns if column]
    top = max([*means, 1.0])
    return "".join(blocks[round(mean / top * (len(blocks) - 1))] for mean in means)
