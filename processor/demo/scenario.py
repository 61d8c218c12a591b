"""What happens in the demo, and when: the acts, in order, between curtain up and the reckoning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from processor.demo.figures import Figures
from processor.demo.reckoning import Reckoning, reckon
from processor.demo.screen import Screen
from processor.demo.stage import Stage
from processor.errors import ProcessorError

#: What a telescope submits in a second; the demo is about losing nothing, not about speed.
RATE = 400.0
_LOOK = 0.1
#: Entries may wait for this long, seconds, and none be committed.
_PATIENCE = 30.0


class Stuck(ProcessorError):
    """The processor does not get on."""


@dataclass(frozen=True, slots=True)
class Act:
    """At this part of the time something happens, and is said."""

    at: float
    sentence: str
    do: Callable[[Stage], str | None]


ACTS = (
    Act(0.00, "three telescopes write, a processor drains", Stage.start_telescopes),
    Act(0.20, "kill -9 PostgreSQL: the telescopes do not notice", Stage.kill_postgres),
    Act(0.27, "a web page writes a row and changes it", Stage.write_night_log),
    Act(0.35, "kill -9 the processor too: what was accepted lies in Redis", Stage.kill_processor),
    Act(0.50, "PostgreSQL is back", Stage.start_postgres),
    Act(0.55, "a new processor takes over", Stage.start_processor),
)
#: The last kill comes when this part of the backlog is drained: in the middle of the batches.
_MIDDLE = 0.3
_LATEST_KILL = 0.75
_LAST_SUBMIT = 0.9


class Play:
    """One run of the demo, of about so many seconds."""

    def __init__(self, seconds: float, stage: Stage, screen: Screen) -> None:
        self._seconds = seconds
        self._stage = stage
        self._screen = screen

    def run(self) -> Reckoning:
        """All of it. Raises ProcessorError if one of its processes fails."""
        self._stage.start_processor()
        self._until(lambda now: now.processor == "running")
        began = self._look().at
        for act in ACTS:
            self._watch(began + act.at * self._seconds)
            self._do(act.sentence, act.do)
        self._kill_in_the_middle(began + _LATEST_KILL * self._seconds)
        self._watch(began + _LAST_SUBMIT * self._seconds)
        self._do("the telescopes stop; what lies in Redis is drained", Stage.stop_telescopes)
        try:
            self._until(lambda now: not now.buffered)
        except Stuck as stuck:
            # That is worth knowing, but no reason to keep the reckoning back.
            self._screen.say(str(stuck))
        self._until(lambda now: not now.behind)
        self._do("the replica has replayed it all", Stage.read_night_log)
        self._do("SIGTERM: the processor settles its batch and leaves", Stage.stop_processor)
        waiting = self._look().buffered
        return reckon(self._stage.directory, self._stage.observer.database(), waiting)

    def _kill_in_the_middle(self, latest: float) -> None:
        """While the backlog is being drained is when a batch is in doubt."""
        start = self._look()
        goal = start.committed + start.buffered * _MIDDLE
        self._until(lambda now: now.committed >= goal or now.at >= latest)
        self._do("kill -9 the processor in the middle of its batches", Stage.kill_processor)
        killed = time.monotonic()
        self._do("another one takes over", Stage.start_processor)
        # What the killed one had sent may still be committed; the new one is not so quick.
        time.sleep(_LOOK)
        before = self._look().committed
        self._until(lambda now: now.committed > before)
        self._screen.say(f"it commits again after {time.monotonic() - killed:.1f} s")

    def _do(self, sentence: str, do: Callable[[Stage], str | None]) -> None:
        self._screen.say(sentence)
        found = do(self._stage)
        if found:
            self._screen.say(found)
        self._look()

    def _look(self) -> Figures:
        figures = self._stage.look()
        self._screen.show(figures)
        return figures

    def _watch(self, moment: float) -> None:
        """Look on until then."""
        self._until(lambda now: now.at >= moment)

    def _until(self, condition: Callable[[Figures], bool]) -> None:
        """Look on until it is so. Raises Stuck if something waits and nothing gets further."""
        done, since = (-1, -1), time.monotonic()
        while not condition(now := self._look()):
            idle = not (now.buffered or now.behind)
            idle = idle or now.postgres == "away" or not self._stage.drains
            if idle or (now.committed, now.replayed) != done:
                done, since = (now.committed, now.replayed), time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise Stuck(
                    f"{now.buffered} entries wait, the replica is {now.behind} behind, and nothing"
                    f" was committed or replayed for {_PATIENCE:g} s"
                )
            time.sleep(_LOOK)


def play(seconds: float, screen: Screen) -> Reckoning:
    """Set the stage, play, and clear everything away."""
    with Stage(RATE) as stage, screen:
        return Play(seconds, stage, screen).run()
