"""The Event is one object for the process, and can be set without loading the drain."""

from __future__ import annotations

import json

import pytest

import processor
from processor.telemetry import wakeup
from tests.harness.process import Spawn

DRAINING = {"ledger", "sql", "replicas", "apply", "ownership", "drain", "runtime", "web", "reads"}


def test_every_name_of_the_event_is_the_same_object() -> None:
    assert processor.event is processor.singleton.event is wakeup.event


@pytest.mark.parametrize("module", ["processor.producer.submit", "processor.receipts.receipt"])
def test_a_process_that_only_submits_loads_nothing_of_the_drain(module: str, spawn: Spawn) -> None:
    process = spawn(f"""
import json, sys
import {module}
print(json.dumps(sorted({{name.split(".")[1] for name in sys.modules
                          if name.startswith("processor.")}})))
""")
    assert process.wait(20) == 0, process.output
    loaded = set(json.loads(process.lines[-1]))
    assert not loaded & DRAINING


def test_the_event_of_a_forked_child_is_set_and_usable_although_its_lock_was_held(
    spawn: Spawn
) -> None:
    process = spawn("""
import os, sys
import processor

event = processor.event
event.clear()
with event._cond:
    pid = os.fork()
    if not pid:
        usable = event.is_set() and event.wait(0)
        event.clear()
        event.set()
        os._exit(0 if usable and processor.event is event else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""")
    assert process.wait(20) == 0, process.output
