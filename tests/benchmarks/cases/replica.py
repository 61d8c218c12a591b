"""`replica`: how fast the buffer drains while the replicas are down, beside a drain without any.

One replica refuses connections, another accepts them and never replies. The limit is the rate
without replicas. The line also has the memory that they add to a long drain.
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
    """Return transactions per second, with ledger and settling, and no commit confirmed."""
    count = options.many(DEFAULT)
    limits, figures = [], []
    with Stage() as stage, closing(_deaf()) as silent, closing(_deaf()) as refusing:
        replicas = {"servers": {"silent": _dsn(silent), "gone": _dsn(refusing)}}
        refusing.close()
        # The order of the two alternates, since the speed of the machine varies.
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
    """Open a port where the kernel accepts connections and no program does."""
    return socket.create_server(("127.0.0.1", 0))


def _dsn(listener: socket.socket) -> str:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
    return " ".join(f"{name}={value}" for name, value in (options | {"dbname": "gone"}).items())
