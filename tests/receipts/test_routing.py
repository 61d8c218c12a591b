"""Reading one's own write: a server that has it, or a clear word that none has."""

from __future__ import annotations

import datetime
import re
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import processor
from processor.buffer import replica_status
from processor.config.loader import configure
from processor.receipts.receipt import Receipt
from processor.runtime import drain_thread
from processor.telemetry import status
from tests.harness.proxy import Proxy
from tests.harness.replicas import Replicas, committed, copied
from tests.harness.servers import Factory, execute
from tests.harness.site import Site, write
from tests.harness.wait import wait_until

NO_SECONDS = [None, "5", float("nan"), float("-inf"), 10**400, datetime.timedelta(1), [], b"1"]


@pytest.fixture
def site(followed: Callable[..., Site]) -> Site:
    made = followed()
    made.start()
    return made


def has(replicas: Replicas, name: str, n: int) -> None:
    wait_until(lambda: replicas.shows(name, n))


def test_the_nearest_replica_that_has_it_is_taken(site: Site, replicas: Replicas) -> None:
    receipt = committed(site, 1)
    has(replicas, "near", 1)
    found = processor.route(receipt)
    assert (found.name, found.dsn) == ("near", replicas.servers["near"])
    replicas.pause("near")
    receipt = committed(site, 2)
    has(replicas, "far", 2)
    assert processor.route(str(receipt)).name == "far"
    replicas.pause("far")
    receipt = committed(site, 3)
    found = processor.route(receipt)
    assert (found.name, found.dsn) == ("primary", site.settings.database.dsn)


def test_an_address_is_not_shown(site: Site, replicas: Replicas) -> None:
    receipt = committed(site)
    assert repr(processor.route(receipt, wait=5)) == "Server(name='near')"


def test_where_the_primary_will_not_do_it_is_said_how_long_it_will_take(
    site: Site, replicas: Replicas
) -> None:
    replicas.pause("near")
    replicas.pause("far")
    receipt = committed(site)
    wait_until(lambda: float(_behind(receipt).catch_up or 0) > 0.2)
    behind = _behind(receipt)
    assert re.search(f"{receipt.id}, which is committed .ask again in about", str(behind))
    assert behind.catch_up is not None
    assert 0.2 < behind.catch_up < 10


def _behind(receipt: Receipt, **options: float) -> processor.ReplicaBehind:
    with pytest.raises(processor.ReplicaBehind) as raised:
        processor.route(receipt, primary=False, **options)
    return raised.value


def test_a_wait_ends_when_the_first_replica_has_it(site: Site, replicas: Replicas) -> None:
    replicas.pause("near")
    replicas.pause("far")
    receipt = committed(site)
    begun = time.monotonic()
    _behind(receipt, wait=0.5)
    assert 0.5 <= time.monotonic() - begun < 2
    threading.Timer(0.3, replicas.resume, ["far"]).start()
    begun = time.monotonic()
    assert processor.route(receipt, wait=10, primary=False).name == "far"
    assert time.monotonic() - begun < 1.3


def test_a_write_that_is_not_committed_is_waited_for_as_well(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed()
    (receipt,) = site.submit(write(1))
    with pytest.raises(processor.ReplicaBehind, match="accepted") as raised:
        processor.route(receipt)
    assert raised.value.catch_up is None
    threading.Timer(0.2, site.start).start()
    assert processor.route(receipt, wait=10, primary=False).name in ("near", "far")


def test_a_replica_that_is_lost_is_passed_over(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed(replicas={"timeout": 0.3, "lost_after": 1.0})
    site.start()
    receipt = committed(site, 1)
    has(replicas, "near", 1)
    replicas.pause("near")
    committed(site, 2)
    wait_until(lambda: drain_thread.state()["replicas"]["near"]["status"] == "lost")
    assert replicas.shows("near", 1), "it has it, and is lost all the same"
    has(replicas, "far", 1)
    assert processor.route(receipt).name == "far"


def test_a_replica_that_is_back_is_read_from_as_soon_as_it_is_told_to_have_a_write(
    followed: Callable[..., Site], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = replicas.standbys["near"]
    proxy = Proxy(("127.0.0.1", near.port), server=near)
    try:
        site = followed(replicas={"servers": {"near": proxy.dsn_of()}})
        proxy.off()
        site.start()
        wait_until(lambda: _told(site)["near"].state == "away")
        receipt = committed(site)
        states = replica_status.replicas

        def slowly(*asked: Any) -> dict[str, Any]:
            time.sleep(0.3)
            return states(*asked)

        monkeypatch.setattr(replica_status, "replicas", slowly)
        proxy.on()
        assert receipt.wait("replicated", 10).state == "replicated"
        assert processor.route(receipt, primary=False).name == "near"
    finally:
        proxy.close()


def _told(site: Site) -> dict[str, Any]:
    """What everybody can hear of the replicas."""
    reply = site.redis.hgetall(f"{site.settings.namespace}:replicas")
    return replica_status.parse_replicas([part for pair in reply.items() for part in pair])


def test_a_server_is_found_without_a_watch(
    site: Site, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.pause("near")
    replicas.pause("far")
    receipt = committed(site)
    assert drain_thread.stop()
    monkeypatch.setattr(status, "REPORT_LIFETIME", -1.0)
    assert processor.route(receipt).name == "primary"
    threading.Timer(0.3, replicas.resume, ["far"]).start()
    begun = time.monotonic()
    assert processor.route(receipt, wait=10, primary=False).name == "far"
    assert time.monotonic() - begun < 2.0


def test_a_server_is_found_without_redis(
    site_of: Callable[..., Site], configured: Callable[[Site], Site], replicas: Replicas,
    own_redis: Factory,
) -> None:  # fmt: skip
    redis = own_redis()
    site = configured(site_of(redis, replicas.primary, replicas={"servers": replicas.servers}))
    replicas.catch_up()
    site.start()
    receipt = committed(site, 1)
    has(replicas, "near", 1)
    replicas.pause("near")
    replicas.pause("far")
    later = committed(site, 2)
    drain_thread.stop()
    redis.kill()
    assert processor.route(receipt).name == "near"
    assert processor.route(later).name == "primary"
    with pytest.raises(processor.RedisUnavailable):
        processor.route(later, primary=False)


def test_a_server_is_found_while_the_primary_is_down(
    site_of: Callable[..., Site], configured: Callable[[Site], Site], own_postgres: Factory,
    own_standby: Factory,
) -> None:  # fmt: skip
    primary = own_postgres()
    standby = own_standby(primary, name="near")
    made = site_of(postgres=primary, replicas={"servers": {"near": standby.dsn}})
    site = configured(made)
    site.start()
    receipt = committed(site)
    receipt.wait("replicated", 10)
    primary.kill()
    assert processor.route(receipt).name == "near"
    site.redis.delete(site.lane().commits)
    assert processor.route(receipt).name == "near"
    (waiting,) = site.submit(write(2))
    with pytest.raises(processor.ReplicaBehind, match="accepted"):
        processor.route(waiting, wait=0.2)


def test_without_replicas_it_is_the_primary_once_it_is_committed(
    site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    site = configured(site_of())
    (receipt,) = site.submit(write(1))
    threading.Timer(0.2, site.start).start()
    assert processor.route(receipt, wait=10).name == "primary"
    with pytest.raises(processor.ReplicaBehind):
        processor.route(receipt, primary=False)


def test_replicas_that_nobody_may_follow_are_asked_themselves(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed()
    configure(site.changed(replicas={"tracking": False}))
    drain_thread.start(site.changed(replicas={"tracking": False}))
    replicas.pause("near")
    receipt = committed(site)
    assert processor.route(receipt, wait=10, primary=False).name == "far"


@pytest.mark.parametrize("text", ["", "near", "~~~"])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(processor.InvalidTransaction, match="receipt"):
        processor.route(text)


@pytest.mark.parametrize("given", [None, b"text", 5, ["text"]])
def test_what_is_not_even_a_text_is_refused_alike(given: Any) -> None:
    said = f"after: is a {type(given).__name__}, no receipt .give what submit returned"
    with pytest.raises(processor.InvalidTransaction, match=said):
        processor.route(given)
    if given is not None:
        with pytest.raises(processor.InvalidTransaction, match=said):
            processor.read("item", after=given)


@pytest.mark.parametrize("wait", NO_SECONDS)
def test_a_wait_that_is_no_number_of_seconds_is_refused(wait: Any) -> None:
    receipt = Receipt(processor.new_id(), "default:0", "1-1", processor.new_id())
    with pytest.raises(processor.InvalidTransaction, match=r"wait: .* is no number of seconds"):
        processor.route(receipt, wait=wait)


# A name for another server.


def exchanged(replicas: Replicas) -> dict[str, str]:
    near, far = replicas.servers.values()
    return {"near": far, "far": near}


def server_of(site: Site, name: str) -> bytes:
    """Which server a name stands for, as is told."""
    told = site.redis.hget(f"{site.settings.namespace}:servers", name) or b""
    return bytes(told.partition(b" ")[0])


def test_a_name_that_is_given_to_another_server_counts_by_what_that_one_shows(
    site: Site, replicas: Replicas
) -> None:
    replicas.pause("far")
    receipt = committed(site, 1)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})
    settings = site.changed(replicas={"servers": exchanged(replicas)})
    configure(settings)
    drain_thread.reload(settings)
    wait_until(lambda: receipt.status().replicas == {"near": False, "far": True})
    assert receipt.wait("replicated", 0.5).state == "committed"
    assert processor.route(receipt).name == "far"
    replicas.resume("far")
    assert receipt.wait("replicated", 10).state == "replicated"
    assert replicas.shows("far", 1)


def test_what_is_told_of_a_name_is_not_believed_against_its_server_when_nobody_follows(
    site: Site, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.pause("far")
    receipt = committed(site, 1)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})
    assert drain_thread.stop()
    monkeypatch.setattr(status, "REPORT_LIFETIME", -1.0)
    configure(site.changed(replicas={"servers": exchanged(replicas)}))
    assert receipt.status().replicas == {"near": False, "far": True}
    assert processor.route(receipt).name == "far"
    nowhere = dict.fromkeys(replicas.servers, "host=/nowhere dbname=none")
    configure(site.changed(replicas={"servers": nowhere}))
    assert receipt.status().replicas == {"near": True, "far": False}, "nobody can be asked"


def test_what_was_told_of_another_server_is_taken_back_also_while_redis_is_full(
    site_of: Callable[..., Site], configured: Callable[[Site], Site], replicas: Replicas,
    own_redis: Factory,
) -> None:  # fmt: skip
    servers = {"replicas": {"servers": replicas.servers}}
    site = configured(site_of(own_redis(), replicas.primary, **servers))
    replicas.catch_up()
    site.start()
    replicas.pause("far")
    receipt = committed(site, 1)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})
    site.redis.config_set("maxmemory", "1")
    settings = site.changed(replicas={"servers": exchanged(replicas)})
    configure(settings)
    drain_thread.reload(settings)
    wait_until(lambda: receipt.status().replicas == {"near": False, "far": False})
    site.redis.config_set("maxmemory", "0")
    wait_until(lambda: receipt.status().replicas == {"near": False, "far": True})


def test_of_two_processors_that_mean_two_servers_by_one_name_one_is_believed(
    site: Site, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.pause("far")
    receipt = committed(site, 1)
    wait_until(lambda: receipt.status().replicas["near"])
    meant = server_of(site, "near")
    other = site.run(replicas={"servers": exchanged(replicas)})
    wait_until(lambda: server_of(site, "far") == meant != server_of(site, "near"))
    for n in range(2, 20):
        receipt = committed(site, n)
        has(replicas, "near", n)
        assert receipt.wait("replicated", 0.05).replicas == {"near": False, "far": False}
    assert other.terminate() == 0
    monkeypatch.setattr(status, "REPORT_LIFETIME", 2.0)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})


def test_a_replica_that_is_built_anew_from_an_older_copy_has_what_it_shows(
    site_of: Callable[..., Site], configured: Callable[[Site], Site], own_postgres: Factory,
    own_standby: Factory, proxy_to: Callable[..., Proxy],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    primary = own_postgres()
    link = proxy_to(primary)
    near = own_standby(
        primary, name="near", conninfo_override=f"host=127.0.0.1 port={link.port}"
    )
    site = configured(site_of(postgres=primary, replicas={"servers": {"near": near.dsn}}))
    site.start()
    assert committed(site, 1).wait("replicated", 10).state == "replicated"
    older = copied(near)
    receipt = committed(site, 2)
    assert receipt.wait("replicated", 20).state == "replicated"

    near.stop()
    link.off()
    shutil.rmtree(near.data)
    older.rename(near.data)
    near.start()

    wait_until(lambda: receipt.status().replicas == {"near": False})
    assert "replica near went back" in caplog.text
    assert execute(near.dsn, "select n from tape") == [(1,)]
    assert receipt.wait("replicated", 0.5).state == "committed"
    with pytest.raises(processor.ReplicaBehind):
        processor.route(receipt, primary=False)
    link.on()
    assert receipt.wait("replicated", 20).state == "replicated"
    assert execute(near.dsn, "select n from tape order by n") == [(1,), (2,)]
