"""Clocks that are wrong: only that of Redis counts."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

import processor
from processor.config import loader
from tests.harness.site import Site, write


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.parametrize("whose", ["processor.producer.submit", "processor.drain.drain"])
def test_a_delay_is_counted_by_the_clock_of_redis(
    whose: str, ahead: float, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 82: a clock that is an hour wrong neither delays nor hurries anything."""
    clock = SimpleNamespace(time=lambda: time.time() + ahead, monotonic=time.monotonic)
    monkeypatch.setattr(f"{whose}.time", clock, raising=False)
    loader.configure(site.settings)
    site.start()
    begun = time.monotonic()
    processor.submit(write(1, delay=0.5))
    site.commits(1, timeout=5.0)
    assert time.monotonic() - begun >= 0.5
    loader.configure({})
