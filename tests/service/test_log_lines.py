"""The log of a service: one line an event, which cannot be forged and never delays the work."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.errors import ConfigError, DatabaseUnavailable
from processor.service import log_lines
from processor.service.log_lines import Json, Lines, Text


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.Logger("processor.test")
    yield log
    log.handlers.clear()


def to(log: logging.Logger, file: int, formatter: logging.Formatter | None = None) -> None:
    handler = Lines(file)
    handler.setFormatter(formatter or Text())
    log.handlers[:] = [handler]


def read(pipe: tuple[int, int]) -> list[str]:
    os.set_blocking(pipe[0], False)
    data = b""
    while True:
        try:
            data += os.read(pipe[0], 65536)
        except BlockingIOError:
            return data.decode().splitlines()


def test_a_line_has_time_level_and_message(log: logging.Logger, pipe: tuple[int, int]) -> None:
    to(log, pipe[1])
    log.warning("lane %s: paused", "default:0")

    [line] = read(pipe)
    at, level, message = line.split(" ", 2)
    assert at.endswith("Z")
    assert (level, message) == ("WARNING", "lane default:0: paused")


def test_a_json_line_has_the_same_and_the_thread(
    log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1], Json())
    log.error('a "quoted" %s', "word")

    line = json.loads(read(pipe)[0])
    assert (line["level"], line["message"]) == ("error", 'a "quoted" word')
    assert (line["logger"], line["thread"]) == ("processor.test", "MainThread")


@pytest.mark.parametrize("formatter", [Text(), Json()])
@pytest.mark.parametrize(
    "text",
    ["two\nlines", "a\rb", "\x1b[2Kgone", "\x9b2K", "nul\0", "\u2028sep", "\u202eturned", "\x7f"],
)
def test_no_text_forges_a_line_or_moves_the_cursor(
    text: str, formatter: logging.Formatter, log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1], formatter)
    log.info("key %s", text)

    [line] = read(pipe)
    assert line.isprintable()


@pytest.mark.parametrize("text", [
    "cannot open postgresql://app:canary@db:5432/app",
    "cannot open redis://:canary@127.0.0.1:6379/0",
    "host=db password=canary dbname=app",
    "host=db password='canary word' dbname=app",
    "?user=app&password=canary&sslmode=require",
    "token: canary",
])  # fmt: skip
def test_no_password_is_written(text: str, log: logging.Logger, pipe: tuple[int, int]) -> None:
    to(log, pipe[1])
    log.info(text)

    [line] = read(pipe)
    assert "canary" not in line
    assert "****" in line


def test_the_class_and_place_of_an_exception_are_written_but_not_its_text(
    log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1])
    try:
        raise ValueError("Key (card)=(4111) exists")
    except ValueError:
        log.exception("a pass failed")

    [line] = read(pipe)
    assert "4111" not in line
    assert "[ValueError at test_log_lines.py:" in line


def test_an_exception_without_a_traceback_is_named(
    log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1])
    log.error("no such file", exc_info=OSError("canary"))

    assert read(pipe)[0].endswith("no such file [OSError at an unknown place]")


def test_an_error_of_processor_is_quoted_since_it_holds_no_value(
    log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1], Json())
    try:
        raise DatabaseUnavailable("no answer")
    except DatabaseUnavailable:
        log.error("outage", exc_info=True)

    assert json.loads(read(pipe)[0])["failure"].startswith("DatabaseUnavailable: no answer at ")


@pytest.mark.parametrize("text", ["x", '"', "\n", "ü", "\U0001f600", "\udcff"])
def test_a_long_line_is_cut_and_stays_valid(
    text: str, log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1], Json())
    try:
        raise DatabaseUnavailable(text * 10_000)
    except DatabaseUnavailable:
        log.error(text * 10_000, exc_info=True)

    [line] = read(pipe)
    assert len(line.encode()) < 4096
    assert json.loads(line)["message"]


def test_a_stalled_reader_does_not_block_and_is_told_how_many_lines_were_dropped(
    log: logging.Logger, pipe: tuple[int, int]
) -> None:
    to(log, pipe[1])
    begun = time.monotonic()
    for number in range(2_000):
        log.info("line %d of many, long enough to fill the pipe %s", number, "x" * 100)
    assert time.monotonic() - begun < 1.0

    received = read(pipe)
    log.info("again")

    missed, again = read(pipe)
    assert missed == f"({2_000 - len(received)} lines could not be written)"
    assert again.endswith("again")


def test_a_closed_log_and_a_wrong_message_raise_nothing(log: logging.Logger) -> None:
    _, writing = os.pipe()
    to(log, writing)
    os.close(writing)

    log.info("written to a closed pipe")
    log.info("%d", "not a number")


def test_a_rotated_log_file_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "processor.log"
    saved = [os.dup(stream) for stream in (1, 2)]
    try:
        log_lines.reopen(path)
        os.write(2, b"before\n")
        path.rename(tmp_path / "processor.log.1")
        log_lines.reopen(path)
        os.write(2, b"after\n")
    finally:
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)

    assert (tmp_path / "processor.log.1").read_text() == "before\n"
    assert path.read_text() == "after\n"


def test_a_log_in_a_missing_directory_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give another --log-file"):
        log_lines.open_file(tmp_path / "nowhere" / "log")


def test_a_log_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "passwd")

    with pytest.raises(ConfigError, match=r"log \S+/log: "):
        log_lines.open_file(tmp_path / "log")
    assert not (tmp_path / "passwd").exists()
