"""`poison`: what 1 % of failing transactions costs the others.

Each violates a CHECK on its own row and has no key. Retries, if there are any, follow at once, so
that they fall into the measured time, which ends when all of them are dead letters.
"""

from __future__ import annotations

from tests.benchmarks import engine
from tests.benchmarks.options import Options, note
from tests.benchmarks.result import Result, compared
from tests.benchmarks.sentences import counted
from tests.benchmarks.stage import Stage

POISON = 0.01
DELAY = 0.05


def run(options: Options) -> Result:
    """Return transactions per second with poison; the limit is the rate without."""
    count = options.many(100_000)
    clean, poisoned = [], []
    with Stage() as stage:
        stage.configure(retry={"delay": DELAY})
        for turn in range(options.turns(3)):
            stage.empty()
            stage.fill(count)
            clean.append(engine.drain(stage, count))
            stage.see_all(count)
            stage.empty()
            stage.fill(count, poison=POISON)
            with counted(options.profile, "with poison"):
                poisoned.append(engine.drain(stage, count, profile=options.profile))
            stage.see_all(count - _dead(stage))
            note(f"round {turn + 1}: clean {clean[-1].rate:,.0f}/s, "
                 f"poison {poisoned[-1].rate:,.0f}/s, {_dead(stage)} dead")  # fmt: skip
        return compared(poisoned, clean, n=count, dead=_dead(stage))


def _dead(stage: Stage) -> int:
    return int(stage.execute("SELECT count(*) FROM processor.dead_letter")[0][0])
