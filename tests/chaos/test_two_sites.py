"""Two buffers with equal settings drain into one database; neither is disturbed by the other.

Site name, namespace, queues and lanes are the same on both. Only the identity that each buffer has
in its own Redis distinguishes them (rule 1).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from processor import errors
from processor.embedded import RedisServer
from tests.harness import workload
from tests.harness.process import Spawn
from tests.harness.servers import Database
from tests.harness.wait import wait_until
from tests.harness.workload import Site, plain

#: Redis keeps its data through a kill.
DURABLE = {"appendonly": True, "appendfsync": "everysec"}

WATCHED = """
import json, signal, sys, time
import processor
from processor.telemetry import metrics

processor.configure(json.loads(sys.argv[1]))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
seen = set()
processor.hooks.after_pass.append(
    lambda: seen.add(processor.state()["background_processor"]["status"]))
processor.start()
signal.sigwait([signal.SIGTERM])
assert processor.stop()
figures = {name: int(metrics.value(name)) for name in ("outages", "takeovers", "fenced")}
print(json.dumps({"seen": sorted(seen), **figures}))
"""


class Load:
    """A producer of one site that submits throughout, and again after a refusal."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.accepted = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(0.002):
            work = plain(f"k{self.accepted % 5}")
            while not self._ending.is_set():
                try:
                    receipt = self.site.producer.submit(self.site.encoded(work))
                except errors.RedisUnavailable:
                    self._ending.wait(0.05)
                    continue
                self.site.history.append(workload.acknowledged(work, receipt))
                self.accepted += 1
                break

    def end(self) -> None:
        self._ending.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


class Station:
    """A site with a Redis of its own, its processor and its producer."""

    def __init__(self, redis: RedisServer, database: Database, spawn: Spawn) -> None:
        self.redis = redis
        # Long enough that a pause of the machine is not taken for the end of a server or an owner.
        self.site = Site(
            redis.url, database, namespace="processor",
            redis={"url": redis.url, "timeout": 10.0},
            database={"dsn": database.dsn, "takeover": 60.0},
        )  # fmt: skip
        self.processor = spawn(WATCHED, json.dumps(self.site.mapping))
        self.load = Load(self.site)

    def commits_at_once(self) -> None:
        """Check ten times that accepted transactions are committed within a second."""
        for _ in range(10):
            before = self.load.accepted
            wait_until(lambda b=before: self.load.accepted > b + 3, 2, "a site accepts")
            self.site.wait_decided([one.id for one in list(self.site.history)], 1)

    def close(self) -> None:
        self.load.end()
        self.site.close()


@pytest.fixture
def stations(
    own_redis: Callable[..., RedisServer], database: Database, spawn: Spawn
) -> Iterator[list[Station]]:
    """Two sites with equal settings except the address of their Redis."""
    workload.prepare(database)
    made = [Station(own_redis(DURABLE), database, spawn) for _ in range(2)]
    yield made
    for station in made:
        station.close()


def test_two_sites_drain_into_one_database_and_neither_is_disturbed_when_the_other_dies(
    stations: list[Station], database: Database
) -> None:
    for station in stations:
        wait_until(lambda s=station: s.load.accepted > 20)
        station.site.wait_decided([one.id for one in list(station.site.history)])
    names = {tuple(row) for row in database.execute("SELECT lane, site FROM processor.lane")}
    assert names == {(f"{queue}:0", "main") for queue in ("high", "default", "low")}

    for dying, other in (stations, stations[::-1]):
        dying.redis.kill()
        other.commits_at_once()
        dying.redis.start()
        dying.commits_at_once()

    for station in stations:
        station.load.end()
        station.site.wait_empty()
        assert station.processor.terminate() == 0
        seen = json.loads(station.processor.lines[-1])
        # One outage, of its own Redis; none because of the other site's.
        assert (seen["outages"], seen["takeovers"], seen["fenced"]) == (1, 3, 0)
        assert seen["seen"] == ["outage", "running"]
    history = [one for station in stations for one in station.site.history]
    assert not workload.findings(database, history), workload.findings(database, history)
