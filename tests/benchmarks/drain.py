"""`drain`: how fast a full buffer gets into PostgreSQL, next to the prepared replay of its work."""

from __future__ import annotations

from statistics import median

from tests.benchmarks import engine
from tests.benchmarks.options import Options, note
from tests.benchmarks.replay import Run, replay
from tests.benchmarks.result import Result, compared, rounded
from tests.benchmarks.stage import Stage

DEFAULT = 100_000


def run(options: Options) -> Result:
    """Transactions a second, with ledger and settling."""
    count = options.many(DEFAULT)
    limits, figures = [], []
    with Stage() as stage:
        if options.batch:
            stage.configure(batch={"entries": options.batch})
        for turn in range(options.turns(3)):
            stage.empty()
            limits.append(replay(stage, count))
            stage.empty()
            stage.fill(count)
            figures.append(engine.drain(stage, count, profile=options.profile))
            stage.see_all(count)
            note(f"round {turn + 1}: replay {limits[-1].rate:,.0f}/s, "
                 f"drain {figures[-1].rate:,.0f}/s")  # fmt: skip
        return compared(
            [each.rate for each in figures], [each.rate for each in limits], "tx/s", n=count,
            cpu_us=_cpu(figures), limit_cpu_us=_cpu(limits), **stage.programs,
        )  # fmt: skip


def _cpu(runs: list[Run]) -> dict[str, float]:
    """CPU microseconds a transaction: of the client's thread, of its PostgreSQL backend."""
    return {"client": rounded(median(each.client for each in runs)),
            "backend": rounded(median(each.server for each in runs))}  # fmt: skip
