"""`processor verify`: it finds a broken invariant, and ignores work in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from processor.runtime import drain_thread
from tests.harness.cli import UNKNOWN, Cli, Said, poison
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until


def levels(said: Said) -> dict[str, str]:
    return {row["check"]: row["level"] for row in said.records}


def test_after_work_with_failures_every_invariant_holds(at_site: Cli, dead_site: Site) -> None:
    poison(dead_site, 2)
    poison(dead_site, key="k")
    dead_site.submit(write(1, key="k"), write(2), write(3, delay=3600))
    dead_site.commits(2)
    said = at_site("verify", "--json")
    assert said.code == 0, said
    assert set(levels(said).values()) == {"ok"}


def tamper(at_site: Cli, site: Site, how: Callable[[], Any]) -> Said:
    """Change a server by hand while no processor runs, and verify."""
    poison(site, 1, key="k")
    site.submit(write(1, key="k"), write(2))
    site.commits(2)
    wait_until(lambda: site.parked() == 1)
    assert drain_thread.stop()
    how()
    return at_site("verify", "--json")


TAMPERED: dict[str, tuple[str, Callable[[Site], Any]]] = {
    "a parked transaction without its line": (
        "lines", lambda s: s.redis.zrem(
            s.lane().blocked, *(m for m in s.redis.zrange(s.lane().blocked, 0, -1)
                                if s.redis.hkeys(s.lane().parked)[0] in m))),
    "a parked transaction that is first in its line and has no retry": (
        "lines", lambda s: (s.redis.zremrangebyrank(s.lane().blocked, 0, 0),
                            s.redis.delete(s.lane().retry))),
    "a line whose first transaction does not exist": (
        "holders", lambda s: s.redis.zadd(
            s.lane().blocked, {f"x\0{1:016d}-{0:020d}\0{UNKNOWN}".encode(): 0})),
    "a dead letter that is missing from its line": (
        "holds", lambda s: s.redis.zremrangebyrank(s.lane().blocked, 0, 0)),
    "a dead letter that was deleted": (
        "outcomes", lambda s: s.execute("delete from processor.dead_letter")),
    "a ledger row that was deleted": (
        "counters", lambda s: s.execute("delete from processor.ledger where outcome = 'applied'")),
    "a counter that was set back": (
        "counters", lambda s: s.execute("update processor.lane set applied = 0")),
    "a Redis that lost its last entries": (
        "loss", lambda s: s.execute(
            "update processor.lane set last_entry = '9999999999999-0' where lane = 'default:0'")),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_broken_invariant_is_found(at_site: Cli, dead_site: Site, case: str) -> None:
    check, how = TAMPERED[case]
    said = tamper(at_site, dead_site, lambda: how(dead_site))
    assert said.code == 1
    assert levels(said)[check] == "fail", said.out
    assert all(row["remedy"] for row in said.records if row["level"] == "fail")


def test_entries_left_by_a_killed_processor_are_a_warning_until_the_next_one(
    at_site: Cli, site: Site
) -> None:
    site.start()
    (receipt,) = site.submit(write(1))
    site.commits(1)
    wait_until(lambda: not site.depth())
    assert drain_thread.stop()
    site.redis.delete(*site.redis.keys("processor:state:*"))
    site.submit(write(1, id=receipt.id))
    said = at_site("verify", "--json")
    assert (said.code, levels(said)["settled"]) == (0, "warn")
    site.start()
    wait_until(lambda: not site.depth())
    assert levels(at_site("verify", "--json"))["settled"] == "ok"


def test_a_buffer_that_lost_everything_is_distinguished_from_a_new_one(
    at_site: Cli, site: Site
) -> None:
    said = at_site("verify")
    assert said.code == 0
    assert "nothing was ever submitted" in said.out
    site.start()
    assert drain_thread.stop()
    site.redis.flushall()
    said = at_site("verify")
    assert said.code == 1
    assert "Redis holds no buffer" in said.out


def test_verify_without_a_server_is_unavailable(cli: Cli, site: Site) -> None:
    cli.use(merged(site.mapping, {"database": {"dsn": "host=127.0.0.1 port=1 dbname=x"}}))
    assert cli("verify").code == 69
    cli.use(merged(site.mapping, {"redis": {"url": "redis://127.0.0.1:1/0"}}))
    assert cli("verify").code == 69
