"""A store-and-forward write path for PostgreSQL.

Request handlers submit transactions into a Redis buffer; one background thread drains it into
PostgreSQL, in order and exactly once in effect::

    import processor

    processor.configure("etc/processor.yml")
    processor.start()
    processor.submit(processor.Transaction(key="order-42").insert("orders", {"id": 1}))

Importing this package opens and starts nothing. Each public name is loaded on first use, since the
Redis client alone takes longer to import than this whole package.
"""

from __future__ import annotations

import sys
from importlib import import_module

from processor.version import __version__ as __version__

# A copy, because importing `typing` takes ten times as long as importing this module.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from processor.config.loader import configure
    from processor.errors import (
        AlreadyRunning,
        BufferFull,
        ConfigError,
        DatabaseUnavailable,
        InvalidRead,
        InvalidTransaction,
        NotRunning,
        ProcessorError,
        RedisUnavailable,
        ReplicaBehind,
        ReplicaLost,
        SubmitUnknown,
        TransactionDead,
        TransactionLost,
        Unavailable,
        WaitTimeout,
    )
    from processor.producer.submit import submit, submit_many
    from processor.reads.reader import cached, read
    from processor.receipts.receipt import Receipt
    from processor.receipts.routing import route
    from processor.runtime.drain_thread import hooks, singleton, start, state, stop
    from processor.telemetry.wakeup import event
    from processor.transaction.builder import Transaction
    from processor.transaction.ids import new_id
    from processor.transaction.statements import statement
    from processor.transaction.values import Json

# The module of each public name. `Transaction` is loaded from `producer`, which enables its `with`
# form to submit.
_HOMES = {
    "configure": "processor.config.loader",
    "new_id": "processor.transaction.ids",
    "statement": "processor.transaction.statements",
    "Transaction": "processor.producer.submit",
    "Json": "processor.transaction.values",
    "Receipt": "processor.receipts.receipt",
    "route": "processor.receipts.routing",
    "read": "processor.reads.reader",
    "cached": "processor.reads.reader",
    "submit": "processor.producer.submit",
    "submit_many": "processor.producer.submit",
    "singleton": "processor.runtime.drain_thread",
    "start": "processor.runtime.drain_thread",
    "stop": "processor.runtime.drain_thread",
    "state": "processor.runtime.drain_thread",
    "hooks": "processor.runtime.drain_thread",
    "event": "processor.telemetry.wakeup",
    **dict.fromkeys(
        (
            "AlreadyRunning", "BufferFull", "ConfigError", "DatabaseUnavailable", "InvalidRead",
            "InvalidTransaction", "NotRunning", "ProcessorError", "RedisUnavailable",
            "ReplicaBehind", "ReplicaLost", "SubmitUnknown", "TransactionDead", "TransactionLost",
            "Unavailable", "WaitTimeout",
        ),
        "processor.errors",
    ),
}  # fmt: skip

__all__ = [
    "AlreadyRunning", "BufferFull", "ConfigError", "DatabaseUnavailable", "InvalidRead",
    "InvalidTransaction", "Json", "NotRunning", "ProcessorError", "Receipt", "RedisUnavailable",
    "ReplicaBehind", "ReplicaLost", "SubmitUnknown", "Transaction", "TransactionDead",
    "TransactionLost", "Unavailable", "WaitTimeout", "cached", "configure", "event", "hooks",
    "new_id", "read", "route", "singleton", "start", "state", "statement", "stop", "submit",
    "submit_many",
]  # fmt: skip


if not TYPE_CHECKING:
    # Hidden from type checkers: for them, a module with `__getattr__` has every name, also a
    # misspelled one.

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            # With both arguments, Python's traceback suggests the nearest name.
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name,
                                 obj=sys.modules[__name__])
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
