"""Replicas are followed by the rows that they show, outside the drain loop."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extras import LogicalReplicationConnection

from processor.buffer import replica_status
from processor.config.settings import Replicas
from processor.connections.redis_client import RedisConnection
from processor.connections.wal_position import Position
from processor.embedded import PostgresServer, Standby
from processor.errors import RedisUnavailable
from processor.replicas import queries
from processor.replicas.commit_marks import CommitMarks
from processor.replicas.health import ReplicaHealth
from processor.runtime import drain_thread
from processor.telemetry.status import Replica
from tests.harness.proxy import Proxy
from tests.harness.servers import Factory, execute
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until


def at(lsn: int, timeline: int = 1) -> Position:
    return Position("7", timeline, lsn)


# Marks.


def test_a_row_proves_its_own_batch_and_all_earlier_ones() -> None:
    marks = CommitMarks()
    marks.start_session({"t": "default:0", "u": "high:0"})
    for xid in (100, 103, 110):
        marks.add(xid, at(xid))

    assert marks.replayed_position([("t", 99)]) is None
    assert marks.replayed_position([("t", 100)]) == at(100)
    assert marks.replayed_position([("t", 109)]) == at(103)
    assert marks.replayed_position([("t", 100), ("u", 110)]) == at(110)
    assert marks.replayed_position([("v", 110)]) is None, "another session's lane"


def test_a_row_of_the_old_session_proves_nothing_about_the_new_one() -> None:
    """After a failover transaction ids may repeat on the new timeline; tokens do not."""
    marks = CommitMarks()
    marks.start_session({"old": "default:0"})
    marks.add(100, at(100))
    marks.start_session({"new": "default:0"})
    marks.add(90, at(200, timeline=2))

    assert marks.replayed_position([("old", 100)]) is None
    assert marks.replayed_position([("new", 90)]) == at(200, timeline=2)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 2**32 + 5), st.lists(st.integers(1, 5), min_size=1, max_size=40),
    st.integers(0, 250),
)  # fmt: skip
def test_marks_survive_the_wraparound_of_transaction_ids(
    first: int, steps: list[int], seen: int
) -> None:
    marks = CommitMarks()
    marks.start_session({"t": "default:0"})
    xids = list(itertools.accumulate([first, *steps]))
    for xid in xids:
        marks.add(xid, at(xid))

    before = [xid for xid in xids if xid <= first + seen]

    assert marks.replayed_position([("t", (first + seen) % 2**32)]) == at(before[-1])


def test_many_marks_are_downsampled_and_never_claim_too_much() -> None:
    marks = CommitMarks()
    marks.start_session({"t": "default:0"})
    for xid in range(1, 100_001):
        marks.add(xid, at(xid))

    assert len(marks._positions) < 10_000
    assert marks.newest() == at(100_000)
    for xid in range(1, 100_001, 997):
        shown = marks.replayed_position([("t", xid)])
        assert shown is None or shown.lsn <= xid
    assert marks.replayed_position([("t", 100_000)]) == at(100_000)


# The status of a replica.


def test_a_replica_that_does_not_answer_holds_up_only_what_it_has_not_shown() -> None:
    marks = CommitMarks()
    marks.start_session({"t": "default:0"})
    health = ReplicaHealth(Replicas(), marks, ["near"])
    marks.add(1, at(1))
    health.record_answer("near", at(1), "0/1")
    marks.add(2, at(2))
    health.record_no_answer("near")

    assert health.have_replayed(at(1), ["near"])
    assert not health.have_replayed(at(2), ["near"])
    assert not health.have_replayed(at(1, timeline=2), ["near"])
    assert health.state("near").state == "away"


def test_progress_is_reset_when_a_server_went_back_or_was_replaced() -> None:
    marks = CommitMarks()
    marks.start_session({"t": "default:0"})
    marks.add(1, at(1))
    for lsn, server in (("0/1", "a"), ("0/2", "b")):
        health = ReplicaHealth(Replicas(), marks, ["near"])
        assert not health.detect_other_server("near", "0/2", "a")
        health.record_answer("near", at(1), "0/2")
        assert health.have_replayed(at(1), ["near"])
        assert not health.detect_other_server("near", "0/2", "a")
        assert health.detect_other_server("near", lsn, server)
        assert not health.have_replayed(at(1), ["near"])
        assert not health.detect_other_server("near", lsn, server)


# Real servers.


def published(site: Site) -> dict[str, str]:
    redis = RedisConnection(site.settings.redis.url, 1.0)
    try:
        replicas = replica_status.replicas(redis, site.settings.namespace)
        return {name: replica.state for name, replica in replicas.items()}
    finally:
        redis.close()


def caught_up() -> bool:
    return bool(drain_thread.state()["replicas"].get("near", {}).get("lag") == 0.0)


def test_replicas_are_found_in_pg_stat_replication_if_none_is_configured(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(postgres=primary)
    site.start()
    site.submit(write(1))
    site.commits(1)

    wait_until(lambda: published(site) == {"near": "following"})
    wait_until(caught_up)
    assert execute(standby.dsn, "select n from tape") == [(1,)]


def test_a_role_that_may_not_see_replicas_follows_none_and_still_drains(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(postgres=primary)
    site.execute(
        "create role plain login; grant usage on schema processor to plain; grant all on all"
        " tables in schema processor to plain; grant all on tape to plain"
    )
    dsn = primary.dsn.replace("postgres@", "plain@")
    site.start(site.changed(database={"dsn": dsn}))
    site.submit(write(1))
    site.commits(1)

    assert drain_thread.state()["replicas"] == {}
    assert published(site) == {}


def test_a_server_without_wait_for_lsn_is_asked_at_the_interval(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(queries, "WAIT_VERSION", 140000)
    site = site_of(postgres=primary, replicas={"servers": {"near": standby.dsn}})
    site.start()
    for n in range(1, 6):
        site.submit(write(n))
        site.commits(*range(1, n + 1))
        wait_until(caught_up)


def test_a_frozen_replica_disturbs_neither_the_drain_nor_a_stop(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    site = site_of(postgres=primary, replicas={"servers": {"near": standby.dsn}})
    site.start()
    site.submit(write(1))
    site.commits(1)
    wait_until(caught_up)

    standby.freeze()
    site.submit(*(write(n) for n in range(2, 500)))
    site.commits(*range(1, 500))
    site.empties()
    assert drain_thread.stop(5.0)
    standby.thaw()
    assert not [t for t in threading.enumerate() if t.name == "processor-replicas"]


def test_a_replica_behind_a_cut_link_is_lagging_until_the_link_is_back(
    site_of: Callable[..., Site], primary: PostgresServer, own_standby: Factory,
    proxy_to: Callable[..., Proxy],
) -> None:  # fmt: skip
    link = proxy_to(primary)
    standby = own_standby(primary, name="near",
                          conninfo_override=f"host=127.0.0.1 port={link.port}")  # fmt: skip
    replicas: dict[str, Any] = {"servers": {"near": standby.dsn}, "timeout": 0.3}
    site = site_of(postgres=primary, replicas=replicas)
    site.start()
    # Before the cut the replica must have the schema, without which its progress is unknown.
    wait_until(caught_up)
    link.off()
    site.submit(write(1))
    site.commits(1)
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "lagging")

    link.on()
    wait_until(caught_up, 20)
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "following")


def test_the_primary_is_asked_for_replicas_even_if_a_standby_is_first_in_the_dsn(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    dsn = f"host=127.0.0.1,127.0.0.1 port={standby.port},{primary.port} user=postgres"
    site = site_of(postgres=primary, database={"dsn": f"{dsn} dbname=postgres"})
    site.start()
    site.submit(write(1))
    site.commits(1)

    wait_until(lambda: published(site) == {"near": "following"})
    wait_until(caught_up)


def test_a_logical_subscriber_does_not_count_as_a_replica(
    site_of: Callable[..., Site], own_postgres: Factory, own_standby: Factory
) -> None:
    primary = own_postgres({"wal_level": "logical"})
    own_standby(primary, name="near")
    site = site_of(postgres=primary)
    site.execute("create publication parts for table tape")
    subscriber = psycopg2.connect(
        primary.dsn, connection_factory=LogicalReplicationConnection, application_name="subscriber"
    )
    cursor = subscriber.cursor()
    cursor.create_replication_slot("parts", output_plugin="pgoutput")
    cursor.start_replication(
        "parts", options={"proto_version": "1", "publication_names": "parts"}, decode=False
    )
    cursor.send_feedback(write_lsn=1, flush_lsn=1, apply_lsn=1, force=True)
    wait_until(lambda: site.one("select count(replay_lsn) from pg_stat_replication") == 2)
    site.start()
    site.submit(write(1))
    site.commits(1)

    wait_until(lambda: published(site).get("near") == "following")
    assert set(published(site)) == {"near"}
    subscriber.close()


def test_a_processor_without_lanes_does_not_report_a_lost_replica_as_back(
    site_of: Callable[..., Site], primary: PostgresServer, standby: Standby
) -> None:
    replicas = {"servers": {"near": standby.dsn}, "timeout": 0.3, "lost_after": 1.0}
    site = site_of(postgres=primary, replicas=replicas)
    site.start()
    site.submit(write(1))
    site.commits(1)
    wait_until(caught_up)
    execute(standby.dsn, "select pg_wal_replay_pause()")
    site.submit(write(2))
    wait_until(lambda: published(site) == {"near": "lost"})

    other = site.run()

    names = "select count(distinct application_name) from pg_stat_activity where application_name"
    asking = names + " like 'processor-replicas%'"
    wait_until(lambda: execute(standby.dsn, asking) == [(2,)])
    reports = set()
    while len(reports) < 3:
        report = json.loads(site.redis.hget(f"{site.settings.namespace}:replicas", "near"))
        assert report["state"] == "lost"
        reports.add(report["told"])
    execute(standby.dsn, "select pg_wal_replay_resume()")
    wait_until(lambda: published(site) == {"near": "following"})
    assert other.terminate() == 0


def test_the_primary_is_published_although_redis_was_unavailable_at_the_connect(
    site_of: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of()
    drain = site.drain()
    calls = []

    def unavailable(*_: object) -> dict[str, Replica]:
        calls.append(1)
        if len(calls) == 1:
            raise RedisUnavailable("Redis is unavailable")
        return {}

    monkeypatch.setattr(replica_status, "replicas", unavailable)
    step(drain)
    assert drain.database.alive
    assert published_primary(site) is None
    step(drain)
    assert published_primary(site) == (drain.database.system, drain.database.timeline)
    assert len(calls) == 2


def test_a_superseded_primary_is_no_longer_written_to(
    site_of: Callable[..., Site]
) -> None:
    """Cut off from its replicas and from the other processor, it would still accept writes."""
    site = site_of()
    site.start()
    system, timeline = published_primary(site) or ("", 0)
    site.redis.set(f"{site.settings.namespace}:primary", f"{system}/{timeline + 1}")

    wait_until(lambda: "left behind" in site.reason or "old primary" in site.reason)
    site.submit(write(1))
    passes = counted("passes")
    wait_until(lambda: passes() > 2)
    assert site.tape() == []
    site.redis.delete(f"{site.settings.namespace}:primary")
    site.commits(1)


def published_primary(site: Site) -> tuple[str, int] | None:
    return replica_status.parse_primary(site.redis.get(f"{site.settings.namespace}:primary"))


def test_a_stop_does_not_wait_for_a_connect_to_a_replica_that_does_not_answer(
    site_of: Callable[..., Site]
) -> None:
    slow = {"connect_timeout": 15.0, "call_timeout": 15.0}
    with socket.create_server(("127.0.0.1", 0)) as hole:
        dsn = f"host=127.0.0.1 port={hole.getsockname()[1]} user=postgres dbname=postgres"
        servers = dict.fromkeys(("near", "far", "farther"), dsn)
        site = site_of(replicas={"servers": servers}, database=slow)
        site.start()
        site.submit(write(1))
        site.commits(1)
        hole.settimeout(10)
        accepted = [hole.accept()[0] for _ in servers]
        begun = time.monotonic()
        assert drain_thread.stop(10.0)
        assert time.monotonic() - begun < 1.5
        assert not [t for t in threading.enumerate() if t.name == "processor-replicas"]
        for each in accepted:
            each.close()
