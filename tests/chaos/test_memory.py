"""The memory of a processor stays flat while it drains a million buffered entries (P12)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.process import Process
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

MEGABYTE = 1 << 20


def resident(process: Process) -> int:
    """Return the resident memory of a process in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def paused(site: Site, process: Process) -> bool:
    """Whether the processor reports its lane as paused, with no batch in progress."""
    states = [
        site.redis.get(key) for key in site.redis.scan_iter(f"processor:state:*:{process.pid}:*")
    ]
    lanes = [json.loads(each)["lanes"]["default:0"] for each in states if each]
    return any(lane["status"] == "paused" for lane in lanes)


def drained(site: Site, count: int, timeout: float) -> tuple[int, int]:
    """Drain entries; return the resident memory before it and the highest during it, in bytes."""
    process = site.run()
    site.submit(write(0))
    wait_until(lambda: site.depth() == 0)
    site.redis.hset("processor:paused", "default", 0)
    wait_until(lambda: paused(site, process))
    chunk = 5000
    for start in range(0, count, chunk):
        site.submit(*(write(n, f"{n:0100}") for n in range(start, start + chunk)))
    assert site.depth() == count
    seen = [resident(process)]
    site.redis.delete("processor:paused")

    def empty() -> bool:
        seen.append(resident(process))
        return not site.depth()

    wait_until(empty, timeout, lambda: site.tale(), poll=0.05)
    assert process.terminate() == 0
    return seen[0], max(seen)


@pytest.mark.parametrize(
    ("count", "limit"),
    [
        (30_000, 25),
        pytest.param(1_000_000, 50, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_memory_is_flat_whatever_the_backlog(count: int, limit: int, site_of) -> None:
    site = site_of(buffer={"limit": 2_000_000})

    before, most = drained(site, count, count / 1000)

    assert site.one("select count(*) from tape") == count + 1
    assert (most - before) / MEGABYTE < limit


def test_memory_is_flat_while_a_server_is_unavailable(site_of, proxy_to, postgres_server) -> None:
    """P4: nothing grows with the length of an outage or the number of probes."""
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    process = site.run()
    load = site.load()
    load.grow(20)
    wait_until(site.tape)

    proxy.off()
    process.expect("outage:")
    load.grow(300, 60)
    before = resident(process)
    load.grow(600, 60)
    most = resident(process)
    proxy.on()
    site.whole(load.end())
    process.expect("outage over")

    assert (most - before) / MEGABYTE < 2
    # One log line at each end, however many probes there were.
    assert process.output.count("outage:") == 1
    assert process.output.count("outage over") == 1
