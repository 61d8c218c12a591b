"""The helper that starts programs for other tests."""

from __future__ import annotations

import signal

from tests.harness.process import Spawn
from tests.harness.wait import wait_until


def test_only_a_whole_line_is_read(spawn: Spawn) -> None:
    process = spawn("""
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
sys.stdout.write("failed")
signal.sigwait([signal.SIGUSR1])
sys.stdout.write(" 0\\n")
""")
    wait_until(lambda: process.output == "failed")
    assert process.lines == []
    process.send(signal.SIGUSR1)
    assert process.expect("failed") == "failed 0"
    assert process.lines == ["failed 0"]
