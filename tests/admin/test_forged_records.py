"""Whatever other programs write into Redis, status, verify, doctor and the drain continue.

Each record is checked where it is read. One that is damaged is named and ignored.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from processor.buffer import registry
from processor.errors import ConfigError
from processor.telemetry.status import LaneState, State
from processor.transaction.ids import new_id
from processor.web.prometheus import exposition
from tests.harness.cli import Cli
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

GOOD = {"instance": "a", "background_processor": {"status": "running", "last_run": None},
        "lanes": {"default:0": {"owner": True, "status": "running", "reason": ""}}}  # fmt: skip
FORGED: list[Any] = [
    b"\xff\xfe", b"null", b"[]", b"{}", b"1e999", b'"text"', b"[" * 100_000,
    {**GOOD, "instance": 5}, {**GOOD, "lanes": []}, {**GOOD, "lanes": {"default:0": {"owner": 3}}},
    {**GOOD, "background_processor": {"status": "running", "last_run": "yesterday"}},
    {"instance": "b", "lanes": {"default:0": {}}},
    {**GOOD, "background_processor": {"dead_letters": "many"}},
    {**GOOD, "lanes": {"default:0": None}}, {"background_processor": {}, "lanes": {}},
]  # fmt: skip


def text(record: Any) -> bytes:
    return record if isinstance(record, bytes) else json.dumps(record).encode()


def test_a_forged_state_is_named_and_ignored(site: Site, cli: Cli) -> None:
    site.submit(write(1))
    keys = {n: f"processor:state:forged-{n}" for n in range(len(FORGED))}
    for n, record in enumerate(FORGED):
        site.redis.set(keys[n], text(record))
    site.redis.set("processor:state:good", json.dumps({**GOOD, "newer": 1}))
    site.redis.lpush("processor:state:list", "x")
    cli.use(site.mapping)

    found = cli("status", "--json")

    assert (found.code, found.err) == (0, "")
    shown = {each["instance"]: each for each in json.loads(found.out)["processors"]}
    assert shown["a"]["newer"] == 1
    words = {n: each["background_processor"]["status"] for n, each in shown.items()}
    damaged = {n for n, word in words.items() if word == "damaged"}
    assert damaged == {"list", *(f"forged-{n}" for n in keys)}
    for command in (["status"], ["verify"], ["doctor"], ["explain", new_id()]):
        assert "Traceback" not in cli(*command).err
    assert "forged-3" in cli("doctor").out


def test_names_that_are_no_lanes_are_drained_shown_and_exported_by_nobody(
    site: Site, cli: Cli
) -> None:
    names = [b"\xff\xfe:0", b"a\nb:0", b"a\x1b[31m:0", b"}:0", b"x", b":0", b"default:99999", b"\0"]
    site.redis.sadd("processor:lanes", *names)
    site.redis.hset("processor:paused", mapping={b"\xff": "0", "default": "soon", "low": "nan"})
    drain = site.drain()
    site.submit(write(1))

    step(drain)

    assert site.tape() == [1]
    assert set(drain.owners.lanes) == {"default:0", "high:0", "low:0"}
    assert cli.use(site.mapping)("status").code in (0, 1)
    _, body = exposition(State(lanes={"a\x1b[31m\r\u2028b": LaneState(depth=1)}))
    assert rb"a\\u001b[31m\\u000d\\u2028b" in body


def test_forged_lanes_beyond_a_number_are_not_taken(
    site: Site, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "MOST_LANES", 20)
    site.redis.sadd("processor:lanes", *(f"forged{n}:{n}" for n in range(300)))
    site.submit(write(1), write(2, queue="low"))
    drain = site.drain()
    step(drain)
    step(drain)
    assert sorted(site.tape()) == [1, 2]
    assert len(drain.owners.lanes) <= 20 + 3
    assert caplog.text.count("lanes or more are registered") == 1
    assert len(cli.use(site.mapping)("status", "--json").records[0]["lanes"]) <= 20 + 3


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"0", b"1e9", b"9" * 20, b"\xff"])
def test_numbers_that_are_none_are_refused_where_they_are_read(site: Site, value: bytes) -> None:
    """The mark of pruning, and the number of partitions."""
    site.redis.set(site.lane().pruned, value)
    site.submit(write(1))
    drain = site.drain()
    step(drain)
    assert site.tape() == [1]
    site.redis.hset("processor:partitions", "default", value)
    with pytest.raises(ConfigError, match="no number of partitions"):
        site.submit(write(2))


def garbage(random_: random.Random) -> bytes:
    """Bytes, text or JSON of any shape; now and then something that is nearly valid."""
    kind = random_.randrange(6)
    if kind == 0:
        return random_.randbytes(random_.randrange(40))
    if kind == 1:
        return text(random_.choice(FORGED[1:6]))
    if kind == 2:
        return b"%d-%d\n%d\n{}" % tuple(random_.randrange(9) for _ in range(3))
    if kind == 3:
        body = {"id": random_.choice([new_id(), "x", None]), "operations": random_.choice(
            [[], None, [{"op": "insert", "table": "tape", "values": {"n": -1}, "x": 1}],
             [{"op": "update", "table": "account", "set": {"balance": 1}}]])}  # fmt: skip
        return json.dumps(body).encode()
    if kind == 4:
        return b"k\0" + b"%016d-%020d" % (random_.randrange(99), 0) + b"\0" + new_id().encode()
    return json.dumps({"id": new_id(), "at": random_.choice([1.0, "x"]), "operations": []}).encode()


def forge(site: Site, count: int, random_: random.Random) -> None:
    lane, pipe = site.lane(), site.redis.pipeline(transaction=False)
    for _ in range(count):
        some = [garbage(random_) for _ in range(4)]
        pipe.xadd(lane.stream, {random_.choice([b"v", some[0]]): b"1", b"tx": some[1]})
        pipe.hset(lane.parked, random_.choice([new_id(), some[2]]), some[3])
        pipe.zadd(lane.blocked, {some[0]: 0})
        pipe.zadd(lane.retry, {some[1]: random_.random()})
        pipe.zadd(lane.scheduled, {some[2]: random_.random()})
        field = random_.choice([b"dead", b"in", b"buffer", b"at"])
        pipe.xadd(lane.commits, {field: some[0] or b"x"})
        pipe.hset("processor:overlay", some[0], some[1])
        pipe.xadd("processor:overlay:log", {"id": some[2], "lists": some[3]})
        pipe.rpush("processor:overlay:table:tape", some[0])
        pipe.rpush("processor:overlay:wide:tape", some[1])
        pipe.hset("processor:replicas", some[1], some[2])
        pipe.hset("processor:servers", some[1], some[2])
        pipe.hset(lane.replayed, some[1], some[2])
        pipe.xadd("processor:losses", {b"ids": some[0]})
    for n in range(min(count, 500)):
        pipe.set(f"processor:state:{n}", garbage(random_))
    pipe.execute(raise_on_error=False)


def contents(site: Site) -> dict[str, Any]:
    """The rows of all tables of the application but the one that forged entries may name."""
    tables = site.execute("select tablename from pg_tables where schemaname = 'public'")
    return {name: site.execute(f"select * from {name}") for (name,) in tables if name != "tape"}


#: 280,000 records.
LONG = pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])


@pytest.mark.parametrize("count", [300, LONG])
def test_thousands_of_forged_records_change_nothing_and_stop_no_lane(
    count: int, site_of: Any, cli: Cli
) -> None:
    """Each of `count` rounds writes a record of fourteen kinds; rules 10 and 26."""
    seed = 20_261_128
    site = site_of(overlay={"tables": {"tape": ["n"]}}, interval=0.2)
    site.execute("create table bystander (n int); insert into bystander values (1)")
    before = contents(site)
    chance = random.Random(seed)
    for start in range(0, count, 5_000):
        forge(site, min(5_000, count - start), chance)
    site.submit(write(1, key="k"), write(2))
    process = site.run()
    cli.use(site.mapping)
    for command in (["status"], ["doctor"], ["dead", "list"], ["explain", new_id()]):
        found = cli(*command)
        assert "Traceback" not in found.err + found.out, command

    wait_until(lambda: not site.depth(), 20.0 + count / 20, lambda: site.tale())
    site.submit(write(3))
    wait_until(
        lambda: sorted(n for n in site.tape() if n > 0) == [1, 2, 3], 20.0 + count / 20,
        lambda: f"{site.tape()} {process.output}",
    )  # fmt: skip
    assert contents(site) == before
    assert "Traceback" not in process.output
    memory = Path(f"/proc/{process.pid}/status").read_text()
    assert int(memory.partition("VmHWM:")[2].split()[0]) < 400_000
