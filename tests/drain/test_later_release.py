"""What a later release stored stays where it is, is named, and costs next to nothing (rule 95)."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any

import pytest

from processor.buffer import commit_notes
from processor.connections.postgres_session import PostgresSession
from processor.ledger import dead_letters
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.telemetry.progress import Progress
from processor.transaction.ids import new_id
from tests.harness.cli import Cli
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until

LATER = 3000


def reads(site: Site) -> int:
    """Return how often streams were read since Redis started."""
    return int(site.redis.info("commandstats")["cmdstat_xrange"]["calls"])


def test_a_backlog_of_a_later_release_costs_no_memory_and_is_read_once(site: Site) -> None:
    drain = site.drain()
    with site.redis.pipeline(transaction=False) as pipe:
        for _ in range(LATER):
            pipe.xadd(site.lane().stream, {"v": "3", "tx": "a form of a later release"})
        pipe.sadd("processor:lanes", "default:0")
        pipe.execute()
    site.submit(write(1))
    wait_until(lambda: step(drain) or site.tape() == [1])
    cursor = drain.owners.lanes["default:0"].cursor
    wait_until(lambda: step(drain) or cursor.later == LATER)
    assert not any(isinstance(v, set | list | dict) and len(v) > 99
                   for v in (getattr(cursor, n) for n in cursor.__slots__))  # fmt: skip

    before = reads(site)
    for _ in range(10):
        step(drain)
    # Each pass measures each of three lanes, and reads behind its cursor.
    assert reads(site) - before <= 10 * 3 * 3
    site.submit(write(2))
    wait_until(lambda: step(drain) or site.tape() == [1, 2])
    assert (site.depth(), cursor.later) == (LATER, LATER)


def test_what_a_later_release_stored_stays_and_is_named(site: Site, cli: Cli) -> None:
    cli.use(site.mapping)
    delayed, waiting = new_id(), new_id()
    body = b'{"id":"%s","something":"new"}'
    lane = site.lane()
    site.redis.sadd("processor:lanes", lane.name)
    site.redis.zadd(lane.scheduled, {b"3\n" + body % delayed.encode(): time.time()})
    record = b"1-0 v3\n1 why\n" + body % waiting.encode()
    site.redis.hset(lane.parked, waiting, record)
    site.redis.zadd(lane.retry, {waiting: 1.0})
    site.start()
    site.submit(write(1))
    site.commits(1)
    wait_until(lambda: "(envelope version 3, the first is" in site.reason,
               message=lambda: site.reason)  # fmt: skip

    # The entry that was applied leaves the stream some time after its commit.
    wait_until(lambda: site.depth() == 1, message=lambda: site.tale())
    # The delayed one entered the stream with its version, the parked one is as it was.
    ((_, fields),) = site.redis.xrange(lane.stream)
    assert fields == {b"v": b"3", b"tx": body % delayed.encode()}
    wait_until(lambda: site.redis.zscore(lane.retry, waiting) > time.time())
    assert site.redis.hget(lane.parked, waiting) == record
    for each in (delayed, waiting):
        assert "a later release wrote it (envelope version 3)" in cli("explain", each).out
    assert cli("verify").code in (0, 1)


def test_a_dead_letter_of_a_later_release_is_not_retried_by_this_one(site: Site) -> None:
    site.start()
    dying = write("no number")  # type: ignore[arg-type]
    site.submit(dying)
    wait_until(lambda: len(site.dead()) == 1, message=lambda: site.tale())
    site.execute("update processor.dead_letter set version = 3")
    site.ask(dying.id, "retry")
    wait_until(lambda: "later release" in site.dead()[0][2], message=lambda: str(site.dead()))


def test_a_commit_note_of_a_later_release_answers_nothing() -> None:
    fields = [b"v", b"2", b"buffer", b"b", b"at", b"1.0"]
    with pytest.raises(ValueError, match="version 2"):
        commit_notes.parse(fields)
    assert commit_notes.parse(fields[2:]).buffer == "b"


def test_a_later_version_of_every_kind_stays_is_counted_and_stops_nothing(
    site_of: Any, cli: Cli
) -> None:
    site = site_of(overlay={"tables": {"tape": ["n"]}})
    lane, later = site.lane(), new_id()
    site.start()
    site.submit(write(1), write("no number"))  # type: ignore[arg-type]
    wait_until(lambda: len(site.dead()) == 1, message=lambda: site.tale())
    record = b'{"id":"%s","at":1.0,"v":3,"operations":{"a":"new form"}}' % later.encode()
    body = b'{"id":"%s","something":"new"}' % later.encode()
    site.execute("update processor.dead_letter set version = 3")
    kept: dict[str, Any] = {
        lane.parked: {later: b"1-0 v3\n1 why\n" + body}, "processor:overlay": {later: record},
    }  # fmt: skip
    for name, fields in kept.items():
        site.redis.hset(name, mapping=fields)
    site.redis.zadd(lane.scheduled, {b"3\n" + body: time.time() + 3600})
    site.redis.rpush("processor:overlay:table:tape", later)
    site.redis.xadd(lane.stream, {"v": "3", "tx": body})
    site.redis.xadd(lane.commits, {"v": "2", "of": "a later form"})
    site.redis.set("processor:state:later", json.dumps({"record": 2, "anything": []}))
    metrics_before = site.redis.zcard(lane.scheduled), site.redis.xlen(lane.stream)
    site.submit(write(2))
    site.commits(1, 2)
    with closing(OverlayCleaner(site.settings)) as cleaner:
        cleaner.sweep()

    cli.use(site.mapping)
    shown = {each["instance"]: each for each in cli("status", "--json").records[0]["processors"]}
    assert shown["later"]["background_processor"]["status"] == "of a later release"
    (found,) = [each for each in cli("verify", "--json").records if each["check"] == "releases"]
    assert found["level"] == "warn"
    for kind in ("entry", "delayed", "parked", "commit note", "state", "pending write",
                 "dead letter"):
        assert f"{kind}: 1" in found["found"], kind
    assert metrics_before == (site.redis.zcard(lane.scheduled), site.depth())
    for name, fields in kept.items():
        assert site.redis.hget(name, later) == fields[later]


def test_a_damaged_parked_record_is_shown_and_found(site: Site, cli: Cli) -> None:
    cli.use(site.mapping)
    damaged = new_id()
    site.redis.sadd("processor:lanes", "default:0")
    site.submit(write(1))
    for record in (b"", b"\xff", b"1-0\n0\n{", b"x\ny\nz"):
        site.redis.hset(site.lane().parked, damaged, record)
        said = cli("verify", "--json")
        levels = {each["check"]: each["level"] for each in said.records}
        assert (said.code, levels["records"]) == (1, "fail")
        assert "Traceback" not in cli("explain", damaged).err


def test_pages_of_dead_letters_end_between_two_payloads_of_one_id(site: Site) -> None:
    one = new_id()
    for minute, (payload, age) in enumerate([("aa", 3), ("bb", 1), ("cc", 2)]):
        site.execute(
            "insert into processor.dead_letter (id, hash, buffer, lane, entry, body, reason,"
            " died_at, holds) select %s, md5(%s)::uuid, %s, 'l:0', '1-0', '', %s,"
            " now() - %s * interval '1 hour', true",
            (one if minute else new_id(), payload, one, payload, age),
        )
    session = PostgresSession(site.settings.database, Progress(), application="test")
    session.connect()
    with closing(session):
        pages, after = [], None
        while page := dead_letters.listed(session, limit=1, after=after):
            pages.append(page[0].reason)
            after = page[0]
    assert pages == ["aa", "cc", "bb"]
