"""The checker finds each planted defect, and reports nothing for a sound history."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.harness.checker import Dead, Effect, Findings, Known, Submitted, check


@dataclass
class Run:
    """A history that a test can spoil before it is checked."""

    history: list[Submitted] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    ledger: list[Known] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)

    def check(self) -> Findings:
        return check(self.history, self.effects, self.ledger, self.dead, self.waiting)

    def submit(self, name: str, *keys: str, **facts: object) -> None:
        entry = f"1700000000000-{len(self.history)}"
        self.history.append(replace(Submitted(name, keys, entry=entry), **facts))  # type: ignore[arg-type]

    def apply(self, name: str) -> None:
        one = next(each for each in self.history if each.id == name)
        xid = 700 + len(self.ledger)
        for part in range(one.parts):
            self.effects.append(Effect(name, part, len(self.effects), xid))
        entry = one.entry or f"1700000000000-{1000 + len(self.ledger)}"
        self.ledger.append(Known(name, "applied", xid, entry))

    def bury(self, name: str, outcome: str = "dead", *, holds: bool = True) -> None:
        self.ledger.append(Known(name, outcome, 1, "1700000000000-0"))
        self.dead.append(Dead(name, outcome, holds))


def sound() -> Run:
    """Four transactions applied in order, and a poison one with a follower that waits."""
    run = Run()
    for name, key in (("a", "k"), ("b", "k"), ("c", ""), ("d", "")):
        run.submit(name, *filter(None, [key]))
        run.apply(name)
    run.submit("poison", "p", fails=True)
    run.submit("follower", "p")
    run.bury("poison")
    run.waiting = {"follower"}
    return run


def test_a_sound_history_has_no_findings() -> None:
    findings = sound().check()

    assert not findings, findings
    assert " ".join(str(findings).split()) == "lost 0 doubled 0 reordered 0 torn 0 phantom 0"


def lose_an_effect(run: Run) -> None:
    run.effects = [e for e in run.effects if e.id != "c"]
    run.ledger = [k for k in run.ledger if k.id != "c"]


def lose_a_parked_one(run: Run) -> None:
    run.waiting.clear()


def apply_twice(run: Run) -> None:
    run.effects += [replace(e, position=99) for e in run.effects if e.id == "d"]


def apply_a_dead_one(run: Run) -> None:
    run.effects += [Effect("poison", part, 90 + part, 1) for part in (0, 1)]


def swap_two_of_a_key(run: Run) -> None:
    run.effects = [replace(e, position={"a": 2, "b": 1}.get(e.id, e.position))
                   for e in run.effects]  # fmt: skip


def swap_two_of_a_lane(run: Run) -> None:
    run.effects = [replace(e, position={"c": 61, "d": 51}.get(e.id, e.position))
                   for e in run.effects]  # fmt: skip


def overtake_a_dead_letter_that_holds(run: Run) -> None:
    run.waiting.clear()
    run.apply("follower")


def overtake_a_parked_one(run: Run) -> None:
    run.submit("last", "p")
    run.apply("last")


def keep_half(run: Run) -> None:
    run.effects = [e for e in run.effects if (e.id, e.part) != ("b", 1)]


def commit_in_two_transactions(run: Run) -> None:
    run.effects = [replace(e, xid=9) if (e.id, e.part) == ("b", 1) else e for e in run.effects]


def commit_the_ledger_apart(run: Run) -> None:
    run.ledger = [replace(k, xid=9) if k.id == "b" else k for k in run.ledger]


def forget_the_ledger(run: Run) -> None:
    run.ledger = [k for k in run.ledger if k.id != "b"]


def forget_the_effect(run: Run) -> None:
    run.effects = [e for e in run.effects if e.id != "b"]


def forget_the_dead_letter(run: Run) -> None:
    run.dead.clear()


def forget_that_it_died(run: Run) -> None:
    run.ledger = [k for k in run.ledger if k.id != "poison"]


def apply_a_stranger(run: Run) -> None:
    run.effects.append(Effect("stranger", 0, 70, 5))
    run.ledger.append(Known("stranger", "applied", 5, "1700000000000-9"))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lose_an_effect, {"lost": ["c"]}),
        (lose_a_parked_one, {"lost": ["follower"]}),
        (apply_twice, {"doubled": ["d"]}),
        (apply_a_dead_one, {"doubled": ["poison"], "torn": ["poison"]}),
        (swap_two_of_a_key, {"reordered": [("a", "b"), ("a", "b")]}),
        (swap_two_of_a_lane, {"reordered": [("c", "d")]}),
        (overtake_a_dead_letter_that_holds, {"reordered": [("follower", "poison")]}),
        (overtake_a_parked_one, {"reordered": [("last", "poison")]}),
        (keep_half, {"torn": ["b"]}),
        (commit_in_two_transactions, {"torn": ["b"]}),
        (commit_the_ledger_apart, {"torn": ["b"]}),
        (forget_the_ledger, {"torn": ["b"]}),
        (forget_the_effect, {"lost": ["b"], "torn": ["b"]}),
        (forget_the_dead_letter, {"lost": ["poison"], "torn": ["poison"]}),
        (forget_that_it_died, {"torn": ["poison"]}),
        (apply_a_stranger, {"phantom": ["stranger"]}),
    ],
)
def test_a_planted_defect_is_found(
    spoil: Callable[[Run], None], expected: dict[str, list[object]]
) -> None:
    run = sound()

    spoil(run)

    found = run.check()
    assert {n: getattr(found, n) for n in Findings.__slots__ if getattr(found, n)} == expected


def test_an_unacknowledged_transaction_may_be_missing_but_not_doubled() -> None:
    run = Run()
    run.submit("unknown", entry="", acked=False)
    assert not run.check()

    run.apply("unknown")
    assert not run.check()

    run.effects += run.effects
    assert run.check().doubled == ["unknown"]


def test_a_retried_dead_letter_and_its_followers_are_in_order() -> None:
    run = sound()
    run.waiting.clear()
    run.dead = [Dead("poison", "applied", True)]
    run.ledger = [k for k in run.ledger if k.id != "poison"]

    run.apply("poison")
    run.apply("follower")

    assert not run.check(), run.check()


def test_there_is_no_order_between_lanes() -> None:
    run = Run()
    run.submit("low", "k", lane="low:0")
    run.submit("high", "k", lane="high:0")

    run.apply("high")
    run.apply("low")

    assert not run.check()


def test_a_delayed_transaction_takes_its_place_when_it_enters_the_lane() -> None:
    run = Run()
    run.submit("delayed", "k", entry="")
    run.submit("prompt", "k")

    run.apply("prompt")
    run.apply("delayed")

    assert not run.check()


def random_run(seed: int) -> Run:
    """A correct lane: transactions with held keys wait, all others run at once, in order."""
    chance, run = random.Random(seed), Run()
    blocked: dict[str, str] = {}
    for number in range(60):
        name = str(number)
        keys = tuple({chance.choice("stuvw") for _ in range(chance.randrange(3))})
        fails = chance.random() < 0.1
        run.submit(name, *keys, fails=fails)
        if blocked.keys() & set(keys):
            run.waiting.add(name)
            blocked |= dict.fromkeys(keys, name)
        elif fails:
            run.bury(name)
            blocked |= dict.fromkeys(keys, name)
        else:
            run.apply(name)
    return run


@pytest.mark.parametrize("seed", range(200))
def test_random_sound_histories_have_no_findings(seed: int) -> None:
    run = random_run(seed)

    assert not run.check(), run.check()
