"""What a cut, a kill or a frozen owner leaves among the parked entries is found and settled.

Releasing an applied entry takes several commands, and so does parking one (rules 26 and 28). After
an interruption between any two of them nothing may stay behind, and `verify` finds nothing.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from processor.buffer import parked, waiting_lines
from processor.drain.backlog import Backlog
from processor.embedded import RedisServer
from processor.transaction.entry import decode
from processor.transaction.operations import VERSION
from tests.harness.cli import Cli
from tests.harness.process import Process, Spawn
from tests.harness.proxy import Proxy
from tests.harness.site import FAILING, PROGRAM, Site, step, write
from tests.harness.wait import wait_until

MakeSite = Callable[..., Site]

#: Steps of `park` and of `release`, and of a retry that failed again.
POINTS = (
    "park-before", "park-lines", "park-body", "park-after", "settle-before", "retry-before",
    "retry-recorded", "note-before", "release-before", "release-due", "release-lines",
    "release-records", "release-after",
)  # fmt: skip
#: The steps behind which an owner that wakes writes most.
BY_DEFAULT = ("park-lines", "retry-before", "release-lines")
#: Reached while the first transaction still fails.
EARLY = ("park", "settle", "retry")


def remains(site: Site) -> dict[str, int]:
    lane = site.lane()
    keys = {"parked": site.redis.hlen(lane.parked), "blocked": site.redis.zcard(lane.blocked),
            "retry": site.redis.zcard(lane.retry), "stream": site.depth()}  # fmt: skip
    return {name: count for name, count in keys.items() if count}


def is_clean(site: Site, cli: Cli, timeout: float = 20.0) -> None:
    """Wait until nothing is left in Redis, and check that `verify` finds nothing."""
    wait_until(lambda: not remains(site), timeout, lambda: f"{remains(site)}, {site.tale()}")
    found = cli.use(site.mapping)("verify")
    assert found.code == 0, found


def failing_first(site: Site) -> None:
    """Submit a transaction that fails for now, two that wait behind it, and one without a key."""
    site.execute(FAILING)
    site.submit(write(1, "x", key="k"), write(2, key="k"), write(3, key="k"), write(4, "x"))


def frozen(process: Process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def marker(command: str, key: str) -> bytes:
    return f"{command}\r\n${len(key)}\r\n{key}\r\n".encode()


@pytest.mark.parametrize("executed", [True, False], ids=["executed", "not executed"])
@pytest.mark.parametrize("step_", ["ZREM blocked", "HDEL parked", "ZREM retry", "HSET parked"])
def test_a_cut_between_the_commands_of_a_release_leaves_nothing_behind(
    step_: str, executed: bool, proxy_to: Callable[..., Proxy], redis_server: RedisServer,
    site_of: MakeSite, cli: Cli,
) -> None:  # fmt: skip
    proxy = proxy_to(redis_server)
    retry = {"attempts": 99, "delay": 0.1, "max_delay": 0.1}
    site = site_of(redis=proxy, retry=retry, interval=0.2)
    site.mapping["redis"] = {"url": redis_server.url}  # what `verify` asks
    failing_first(site)
    site.start()
    site.parks(4)
    command, key = step_.split()
    cut = proxy.swallow(marker(command, getattr(site.lane(), key)), executed=executed)

    if command == "HSET":
        cut.wait()
    site.execute("delete from failing")

    cut.wait()
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 4], message=site.tale)
    is_clean(site, cli)
    assert [n for n in site.tape() if n != 4] == [1, 2, 3]


def run(spawn: Spawn, site: Site, point: str, action: str, **changed: object) -> Process:
    return spawn(
        PROGRAM, json.dumps(site.mapping | changed), PROCESSOR_CRASHPOINTS="armed",
        PROCESSOR_CRASHPOINT=f"{point}:1:{action}",
    )  # fmt: skip


def reached(site: Site, point: str, happened: Callable[[], bool], old: Process) -> None:
    """Let the transactions succeed, in time for the owner to reach a point, and wait for it."""
    if not point.startswith(EARLY):
        site.parks(4)
        site.execute("delete from failing")
    wait_until(happened, 20.0, lambda: f"{point} was not reached: {old.output}")
    site.execute("delete from failing")


@pytest.mark.soak
@pytest.mark.parametrize("action", ["kill", "cut"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_or_a_cut_at_any_step_leaves_nothing_behind(
    point: str, action: str, proxy_to: Callable[..., Proxy], redis_server: RedisServer,
    site_of: MakeSite, spawn: Spawn, cli: Cli,
) -> None:  # fmt: skip
    retry = {"attempts": 99, "delay": 0.1, "max_delay": 0.1}
    site = site_of(interval=0.2, retry=retry)
    failing_first(site)
    if action == "kill":
        old = run(spawn, site, point, "kill")
        reached(site, point, lambda: not old.running, old)
        site.start()
    else:
        proxy = proxy_to(redis_server)
        old = run(spawn, site, point, "freeze", redis={"url": proxy.url, "timeout": 10.0})
        reached(site, point, lambda: frozen(old), old)
        proxy.reset()
        old.thaw()
        old.expect("outage")

    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 4], message=site.tale)
    is_clean(site, cli)
    assert [n for n in site.tape() if n != 4] == [1, 2, 3]


@pytest.mark.parametrize(
    "point", [each if each in BY_DEFAULT else pytest.param(each, marks=pytest.mark.soak)
              for each in POINTS]
)  # fmt: skip
def test_an_owner_frozen_between_two_steps_leaves_nothing_behind_when_it_wakes(
    point: str, site_of: MakeSite, spawn: Spawn, cli: Cli
) -> None:
    retry = {"attempts": 99, "delay": 0.1, "max_delay": 0.1}
    site = site_of(database={"takeover": 1.0}, interval=0.2, retry=retry)
    failing_first(site)
    old = run(spawn, site, point, "freeze")
    reached(site, point, lambda: frozen(old), old)
    site.start()
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3, 4], message=site.tale)

    old.thaw()

    old.expect("outage")
    is_clean(site, cli)
    assert sorted(site.tape()) == [1, 2, 3, 4]
    assert [n for n in site.tape() if n != 4] == [1, 2, 3]
    site.submit(write(5, key="k"))
    wait_until(lambda: site.tape()[-1:] == [5], message=site.tale)
    old.send(signal.SIGKILL)


def test_records_and_lines_of_entries_that_the_ledger_has_are_settled(site: Site, cli: Cli) -> None:
    """Whatever an old owner wrote, in whatever order."""
    drain = site.drain()
    done = [write(1), write(2, key="a"), write(3, key="b"), write(4, keys=["a", "c"])]
    receipts = site.submit(*done)
    step(drain)
    assert site.tape() == [1, 2, 3, 4]
    lane = site.lane()
    entries = [
        decode(receipt.entry_id, VERSION, made.encode(0.0, 1_000_000).body)
        for made, receipt in zip(done, receipts, strict=True)
    ]
    line_only, *recorded = entries[3], *entries[:3]
    for command in waiting_lines.join(lane, line_only):
        site.redis.execute_command(*command)
    for entry in recorded:
        site.redis.execute_command(*parked.put(lane, entry, 1, "not yet"))
    # One that waits for nothing, and that nothing would try.
    alone = write(5)
    alone_entry = decode("5-0", VERSION, alone.encode(0.0, 1_000_000).body)
    site.redis.execute_command(*parked.put(lane, alone_entry, 1, "not yet"))
    # A damaged record of a transaction that is applied, and one of which nothing is known.
    site.redis.hset(lane.parked, done[3].id, b"damaged")
    site.redis.hset(lane.parked, "no id", b"damaged")

    drain._backlog.measure_soon()
    wait_until(
        lambda: (step(drain), site.parked() == 1 and not site.redis.zcard(lane.blocked))[1],
        message=lambda: f"{remains(site)}",
    )

    assert site.tape() == [1, 2, 3, 4, 5]
    assert site.redis.hkeys(lane.parked) == [b"no id"]
    site.submit(write(6, keys=["a", "b", "c"]))
    wait_until(lambda: (step(drain), site.tape()[-1] == 6)[1])


def test_what_an_owner_parks_when_it_wakes_is_not_overtaken_by_the_next_owner(
    site_of: MakeSite, spawn: Spawn, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old owner parks between the new owner's look at the lines and its read of the stream."""
    retry = {"attempts": 99, "delay": 0.1, "max_delay": 0.1}
    site = site_of(interval=0.2, retry=retry, database={"takeover": 0.5})
    site.execute(FAILING)
    site.submit(write(1, "x", key="k"))
    old = run(spawn, site, "park-before", "freeze")
    wait_until(lambda: frozen(old), 20.0, lambda: old.output)
    site.submit(write(2, key="k"), write(3, key="k"))
    measure = Backlog.measure_if_due

    def measure_and_wake_the_other(backlog: Backlog, now: float) -> None:
        backlog.measure_soon()
        measure(backlog, now)
        if frozen(old) and any(lane.owner for lane in backlog._owners.lanes.values()):
            old.thaw()
            wait_until(lambda: site.depth() == 2 and remains(site).get("parked") == 1)

    monkeypatch.setattr(Backlog, "measure_if_due", measure_and_wake_the_other)
    site.start()
    site.parks(3)
    site.execute("delete from failing")

    wait_until(lambda: sorted(site.tape()) == [1, 2, 3], message=site.tale)
    is_clean(site, cli)
    assert site.tape() == [1, 2, 3]
