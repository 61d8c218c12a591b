"""The state of a processor: asking for it changes nothing, publishing it does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from processor.drain.drain import Drain
from processor.telemetry import metrics
from processor.telemetry.progress import Progress
from tests.harness import workload
from tests.harness.servers import Database
from tests.harness.workload import Site, plain


@pytest.fixture
def site(database: Database, redis_url: str) -> Iterator[Site]:
    yield from workload.sites(redis_url, workload.prepare(database))


def test_asking_for_the_state_writes_nothing_and_publishing_it_does(site: Site) -> None:
    site.submit([plain()])
    drain = Drain(site.settings, "test", Progress(), lambda: False)
    drain.run(time.monotonic())
    key = f"{site.settings.namespace}:state:test"
    before = list(metrics.snapshot())

    state = drain.state()

    assert state.status == "running"
    assert not site.redis.exists(key)
    assert list(metrics.snapshot()) == before

    drain.publish(state)

    assert site.redis.exists(key)
    drain.leave()
