"""`processor dev`: Redis, PostgreSQL and the processor for development, in one command."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from processor.admin.sessions import OperatorSessions
from processor.buffer import lane_size, registry
from processor.buffer.lane import Lane
from processor.cli import output
from processor.cli.config_option import settings_file
from processor.config import loader
from processor.config.settings import Settings
from processor.dev import environment
from processor.dev.home import Addresses, Home
from processor.dev.workbench import Workbench
from processor.errors import ProcessorError
from processor.runtime import drain_thread
from processor.service import foreground, log_lines

#: Longest wait, in seconds, until what a command submitted is committed.
_DRAIN = 10.0
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


@click.command()
@click.option("--reset", is_flag=True, help="Delete the data of earlier runs first.")
@click.option("--sql", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Execute this file when the database is created.")
@click.option("--env", "only_env", is_flag=True,
              help="Print the variables of the running servers, and exit.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def dev(
    context: click.Context, reset: bool, sql: Path | None, only_env: bool, command: Sequence[str]
) -> int:
    """Run Redis, PostgreSQL and the processor for development.

    The servers keep their data in ./.processor and listen on the loopback interface. With COMMAND
    (processor dev -- python app.py), run it with REDIS_URL and DATABASE_URL set, and stop when it
    ends. A second `processor dev -- COMMAND` uses the servers of the first.
    """
    home = Home(Path.cwd())
    source = settings_file(context)
    settings = loader.load(source)
    if reset:
        home.empty()
    if home.user() is not None and (command or only_env):
        return _join(home.addresses(), settings, command)
    if only_env:
        raise ProcessorError(f"no servers run in {home.path}", hint="start them: processor dev")
    if home.user() is None:
        output.message(f"starting Redis and PostgreSQL in {home.path}")
    with Workbench(home, settings.database, sql) as addresses:
        chosen = environment.variables(addresses, settings)
        _enter(chosen, settings)
        if command:
            with _draining(loader.configure(source)):
                return _run(command, dict(os.environ))
        output.text(environment.exports(chosen))
        return foreground.run(loader.configure(source), source)


def _join(addresses: Addresses, settings: Settings, command: Sequence[str]) -> int:
    """Use the servers, and the processor, of the `processor dev` that runs."""
    chosen = environment.variables(addresses, settings)
    if not command:
        output.text(environment.exports(chosen))
        return output.OK
    return _run(command, environment.applied(os.environ, chosen))


def _enter(chosen: dict[str, str], settings: Settings) -> None:
    """Set the variables for this process and what it starts."""
    entered = environment.applied(os.environ, chosen)
    os.environ.clear()
    os.environ.update(entered)
    if settings.replicas.servers:
        output.message("the replicas of the settings are left out: development has none")


@contextlib.contextmanager
def _draining(settings: Settings) -> Iterator[None]:
    """Drain while a command runs, and afterwards what it has submitted."""
    log_lines.install(dataclasses.replace(settings.log, level="warning"))
    drain_thread.start(settings)
    try:
        yield
        _drain(settings)
    finally:
        drain_thread.stop()


def _drain(settings: Settings) -> None:
    end = time.monotonic() + _DRAIN
    with OperatorSessions(settings).redis() as redis:
        while True:
            names = registry.registered(redis, settings.namespace)
            lanes = [Lane(settings.namespace, name) for name in names]
            replies = redis.calls(lane_size.measure(settings.namespace, lanes))
            _, sizes = lane_size.measured(lanes, replies)
            waiting = sum(size.depth for size in sizes)
            if not waiting:
                return
            if time.monotonic() > end:
                output.message(f"{waiting} transactions still wait; the next run resumes them")
                return
            time.sleep(0.05)


def _run(command: Sequence[str], environ: dict[str, str]) -> int:
    """Run a command to its end; return its exit code, as a shell does."""
    # The terminal sends Ctrl-C to the command too, which decides when it ends. The handler does
    # nothing; to ignore the signal would make the command ignore it as well.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command, env=environ)
    except OSError as error:
        output.message(f"{command[0]}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    else:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
        return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGINT, before)
