"""An entry of any size, which others can write, stops no lane and fills no memory (rule 10)."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver

from processor.connections.large_replies import Cut
from processor.connections.redis_client import RedisConnection, RedisRefused
from tests.harness.cli import Cli
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

MIB = 1 << 20


def peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize(
    ("size", "most"),
    [(30 * MIB, 150 * MIB), pytest.param(300 * MIB, 300 * MIB, marks=pytest.mark.soak)],
    ids=["30 MB", "300 MB"],
)
@pytest.mark.parametrize("form", ["body", "foreign", "many fields"])
def test_a_huge_entry_becomes_a_dead_letter_with_its_head_and_length_and_the_lane_continues(
    form: str, size: int, most: int, site_of: Callable[..., Site], own_redis: Any, cli: Cli
) -> None:
    small = {"bytes": MIB, "entries": 100}
    site = site_of(own_redis(), batch=small, buffer={"transaction_bytes": MIB}, interval=0.2)
    site.submit(write(1))
    fields: dict[str, Any] = {
        "body": {"v": 1, "tx": b"x" * size},
        "foreign": {"greeting": b"y" * size, "more": "z"},
        "many fields": {f"f{n}": b"z" * (size // 100) for n in range(100)},
    }[form]
    huge = site.put(fields)
    del fields
    site.submit(*(write(n) for n in range(2, 60)))
    process = site.run()

    wait_until(
        lambda: site.tape() == list(range(1, 60)), 10.0, lambda: f"{site.tape()} {process.output}"
    )
    ((reason, entry, kept),) = site.execute(
        "select reason, entry, length(body) from processor.dead_letter"
    )
    assert entry == huge
    assert reason.startswith(f"unreadable: {str(size)[:2]}")
    assert "bytes are too many" in reason
    assert 0 < kept <= 5 * MIB
    assert site.depth() == 0
    assert peak(process.pid) < most
    site.submit(write(60))
    wait_until(lambda: site.tape()[-1] == 60, 10.0)
    assert cli.use(site.mapping)("verify").code == 0


def test_entries_within_the_limits_are_applied_behind_a_page_that_is_too_large(
    site_of: Callable[..., Site],
) -> None:
    """A page is as many entries as the average suggests, which the next ones may exceed far."""
    site = site_of(batch={"bytes": MIB, "entries": 250}, buffer={"transaction_bytes": MIB})
    site.submit(*(write(n) for n in range(1, 301)))
    site.submit(*(write(n, "x" * 900_000) for n in range(301, 321)))
    site.submit(*(write(n) for n in range(321, 330)))

    site.start()

    site.whole(329)


def test_status_verify_and_explain_do_not_read_a_huge_entry_into_memory(
    site: Site, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.connections.redis_client._REPLY_LIMIT", MIB)
    monkeypatch.setattr(RedisConnection.__init__, "__defaults__", (MIB,))
    site.submit(write(1))
    site.put({"v": 1, "tx": b"x" * 30 * MIB})

    cli.use(site.mapping)
    tracemalloc.start()
    found = cli("status", "--json")
    assert cli("verify").code in (0, 1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 20 * MIB
    assert found.code in (0, 1)
    assert json.loads(found.out)["lanes"]["default:0"]["depth"] == 2


def test_a_reply_that_is_cut_short_keeps_the_connection_in_step(redis_url: str) -> None:
    connection = RedisConnection(redis_url, 5.0, 10_000)
    with redis_driver.Redis.from_url(redis_url) as client:
        client.set("large", b"l" * 100_000)
        client.rpush("medium", *(b"m" * 4_000 for _ in range(5)))
    asked = [("GET", "large"), ("NO-SUCH-COMMAND",), ("LRANGE", "medium", 0, -1), ("GET", "none"),
             ("LLEN", "medium"), ("PING",)]  # fmt: skip
    for _ in range(2):
        large, refused, medium, none, count, pong = connection.read(asked)
        assert isinstance(large, Cut)
        assert (large.length, len(large)) == (100_000, 65_536)
        assert isinstance(refused, RedisRefused)
        assert [len(each) for each in medium] == [4_000, 4_000, 0, 0, 0]
        assert [each.length for each in medium[2:]] == [4_000] * 3
        assert (none, count, pong) == (None, 5, b"PONG")
        assert connection.call("LLEN", "medium") == 5
    assert connection.generation == 2
    connection.close()
