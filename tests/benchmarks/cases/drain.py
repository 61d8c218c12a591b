"""`drain`: how fast a full buffer is drained, beside the prepared replay of the same work."""

from __future__ import annotations

from tests.benchmarks import engine
from tests.benchmarks.options import Options, note
from tests.benchmarks.replay import replay
from tests.benchmarks.result import Result, compared
from tests.benchmarks.stage import Stage

DEFAULT = 100_000


def run(options: Options) -> Result:
    """Return transactions per second, with ledger and settling."""
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
        return compared(figures, limits, n=count, **stage.programs)
