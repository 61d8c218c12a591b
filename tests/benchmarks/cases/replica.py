"""`replica`: how fast the buffer drains while the replicas are down, next to a drain without any.

One replica refuses connections, another takes them and never answers. The limit is the rate with
nothing to follow. What they add to the memory of a long drain stands beside it.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

from tests.benchmarks import engine
from tests.benchmarks.cases import memory
from tests.benchmarks.options import Options, note
from tests.benchmarks.result import Result, compared, rounded
from tests.benchmarks.stage import Stage

DEFAULT = 100_000


def run(options: Options) -> Result:
    """Transactions a second, with ledger and settling, and every commit unconfirmed."""
    count = options.many(DEFAULT)
    limits, figures = [], []
    with Stage() as stage, closing(_deaf()) as silent, closing(_deaf()) as refusing:
        replicas = {"servers": {"silent": _dsn(silent), "gone": _dsn(refusing)}}
        refusing.close()
        # Which of the two comes first changes sides: the machine is not the same all the time.
        for turn in range(options.turns(4)):
            for down in (turn % 2 == 0, turn % 2 == 1):
                stage.configure(replicas=replicas if down else {"tracking": False})
                stage.empty()
                stage.fill(count)
                (figures if down else limits).append(engine.drain(stage, count))
                stage.see_all(count)
            note(f"round {turn + 1}: without {limits[-1].rate:,.0f}/s, "
                 f"down {figures[-1].rate:,.0f}/s")  # fmt: skip
        short, _ = memory.added(stage, max(1, count // 10), replicas=replicas)
        added, _ = memory.added(stage, count, replicas=replicas)
        extra = {"memory_mb": rounded(added), "memory_mb_of_a_tenth": rounded(short)}
        return compared(figures, limits, n=count, **extra, **stage.programs)


def _deaf() -> socket.socket:
    """A port that the kernel takes connections for, and nobody else."""
    return socket.create_server(("127.0.0.1", 0))


def _dsn(listener: socket.socket) -> str:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
    return " ".join(f"{name}={value}" for name, value in (options | {"dbname": "gone"}).items())
