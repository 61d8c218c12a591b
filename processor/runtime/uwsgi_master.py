"""uWSGI: the process that loads the application for its workers runs no thread.

Without `--lazy-apps` the master imports the application and forks the workers, and Python is not
told of these forks. Whatever a thread of the master holds at that moment, at worst the lock of the
interpreter, is held in the worker for ever. So the thread is started in each worker instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from processor.errors import ConfigError


def is_this_process() -> bool:
    """Whether uWSGI loads the application in this process, for others that it forks.

    Raises ConfigError if uWSGI runs without threads.
    """
    uwsgi = _uwsgi()
    if uwsgi is None:
        return False
    if not getattr(uwsgi, "has_threads", True):
        raise ConfigError(
            "uWSGI runs without threads, so the thread of the processor would never run",
            hint="give uWSGI the option enable-threads, or run `processor run` as a service",
        )
    return not (uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler())


def call_in_workers(function: Callable[[], object]) -> None:
    """Have uWSGI call `function` at the beginning of each worker.

    `uwsgidecorators`, if the application imports it later, replaces this hook by its own.
    """
    uwsgi = _uwsgi()
    before = getattr(uwsgi, "post_fork_hook", None)

    def after_fork() -> None:
        if before is not None:
            before()
        if uwsgi.worker_id():
            function()

    uwsgi.post_fork_hook = after_fork


def _uwsgi() -> Any:
    """Return the module that uWSGI provides; None in another server."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi if hasattr(uwsgi, "worker_id") else None
