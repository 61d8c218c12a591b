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
            _see_all(stage, count)
            note(f"round {turn + 1}: replay {limits[-1].rate:,.0f}/s, "
                 f"drain {figures[-1].rate:,.0f}/s")  # fmt: skip
        return compared(
            [each.rate for each in figures], [each.rate for each in limits], "tx/s", n=count,
            cpu_us=_cpu(figures), limit_cpu_us=_cpu(limits), **stage.programs,
        )  # fmt: skip


def _see_all(stage: Stage, count: int) -> None:
    """A fast drain that loses something is no figure."""
    orders, amount = stage.execute("SELECT count(*), sum(amount) FROM orders")[0]
    balance = stage.execute("SELECT sum(balance) FROM account")[0][0]
    if (orders, amount) != (count, balance):
        raise RuntimeError(f"{orders} of {count} orders, amounts {amount}, balances {balance}")


def _cpu(runs: list[Run]) -> dict[str, float]:
    """CPU microseconds a transaction: of the client's thread, of its PostgreSQL backend."""
    return {"client": rounded(median(each.client for each in runs)),
            "backend": rounded(median(each.server for each in runs))}  # fmt: skip
