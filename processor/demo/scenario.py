"""What happens in the demo, and when: the acts, in order, and the reckoning at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from processor.demo.figures import Figures
from processor.demo.reckoning import Reckoning, reckon
from processor.demo.screen import Screen
from processor.demo.stage import Stage
from processor.errors import ProcessorError

#: Transactions that a telescope submits a second; the demo shows safety, not speed.
RATE = 400.0
_LOOK = 0.1
#: Longest time, in seconds, without a commit while entries wait.
_PATIENCE = 30.0


class Stuck(ProcessorError):
    """The processor makes no progress."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens at a fraction of the time, and the sentence that announces it."""

    at: float
    sentence: str
    do: Callable[[Stage], str | None]


ACTS = (
    Act(0.00, "three telescopes write, a processor drains", Stage.start_telescopes),
    Act(0.20, "kill -9 PostgreSQL: the telescopes keep writing", Stage.kill_postgres),
    Act(0.27, "a web page inserts a row and updates it", Stage.write_night_log),
    Act(0.35, "kill -9 the processor too: accepted writes stay in Redis", Stage.kill_processor),
    Act(0.50, "PostgreSQL is back", Stage.start_postgres),
    Act(0.55, "a new processor takes over", Stage.start_processor),
)
#: The last kill comes when this fraction of the backlog is drained: in the middle of the batches.
_MIDDLE = 0.3
_LATEST_KILL = 0.75
_LAST_SUBMIT = 0.9


class Play:
    """One run of the demo, of about `seconds`."""

    def __init__(self, seconds: float, stage: Stage, screen: Screen) -> None:
        self._seconds = seconds
        self._stage = stage
        self._screen = screen

    def run(self) -> Reckoning:
        """Play all acts, then reckon. Raises ProcessorError if one of the processes fails."""
        self._stage.start_processor()
        self._until(lambda now: now.processor == "running")
        began = self._look().at
        for act in ACTS:
            self._watch(began + act.at * self._seconds)
            self._do(act.sentence, act.do)
        self._kill_in_the_middle(began + _LATEST_KILL * self._seconds)
        self._watch(began + _LAST_SUBMIT * self._seconds)
        self._do("the telescopes stop; the rest of the buffer is drained", Stage.stop_telescopes)
        try:
            self._until(lambda now: not now.buffered)
        except Stuck as stuck:
            # Report it, and still show the reckoning.
            self._screen.say(str(stuck))
        self._until(lambda now: not now.behind)
        self._do("the replica has replayed everything", Stage.read_night_log)
        self._do("SIGTERM: the processor settles its batch and exits", Stage.stop_processor)
        waiting = self._look().buffered
        return reckon(self._stage.directory, self._stage.observer.database(), waiting)

    def _kill_in_the_middle(self, latest: float) -> None:
        """Kill the processor while it drains the backlog, so that a batch is in doubt."""
        start = self._look()
        goal = start.committed + start.buffered * _MIDDLE
        self._until(lambda now: now.committed >= goal or now.at >= latest)
        self._do("kill -9 the processor in the middle of its batches", Stage.kill_processor)
        killed = time.monotonic()
        self._do("another processor takes over", Stage.start_processor)
        # PostgreSQL may still commit a batch of the killed processor; count only what comes later.
        time.sleep(_LOOK)
        before = self._look().committed
        self._until(lambda now: now.committed > before)
        self._screen.say(f"commits resume after {time.monotonic() - killed:.1f} s")

    def _do(self, sentence: str, do: Callable[[Stage], str | None]) -> None:
        self._screen.say(sentence)
        result = do(self._stage)
        if result:
            self._screen.say(result)
        self._look()

    def _look(self) -> Figures:
        figures = self._stage.look()
        self._screen.show(figures)
        return figures

    def _watch(self, moment: float) -> None:
        """Count and show until `moment`, in seconds after the start."""
        self._until(lambda now: now.at >= moment)

    def _until(self, condition: Callable[[Figures], bool]) -> None:
        """Count and show until `condition` holds. Raises Stuck if work waits and none is done."""
        done, since = (-1, -1), time.monotonic()
        while not condition(now := self._look()):
            idle = not (now.buffered or now.behind)
            idle = idle or now.postgres == "down" or not self._stage.drains
            if idle or (now.committed, now.replayed) != done:
                done, since = (now.committed, now.replayed), time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise Stuck(
                    f"no commit and no replay for {_PATIENCE:g} s, while {now.buffered} entries"
                    f" wait and the replica is {now.behind} transactions behind"
                )
            time.sleep(_LOOK)


def play(seconds: float, screen: Screen) -> Reckoning:
    """Start everything, play, and remove everything."""
    with Stage(RATE) as stage, screen:
        return Play(seconds, stage, screen).run()
