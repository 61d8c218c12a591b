"""Reading one's own write: a server that has it, or an error that says when one will."""

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


def test_the_nearest_replica_that_has_the_write_is_chosen(site: Site, replicas: Replicas) -> None:
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


def test_a_server_does_not_show_its_address(site: Site, replicas: Replicas) -> None:
    receipt = committed(site)
    assert repr(processor.route(receipt, wait=5)) == "Server(name='near')"


def test_without_the_primary_the_error_says_when_to_ask_again(
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


def test_a_wait_ends_when_the_first_replica_has_the_write(site: Site, replicas: Replicas) -> None:
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


def test_a_wait_covers_a_write_that_is_not_committed_yet(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed()
    (receipt,) = site.submit(write(1))
    with pytest.raises(processor.ReplicaBehind, match="accepted") as raised:
        processor.route(receipt)
    assert raised.value.catch_up is None
    threading.Timer(0.2, site.start).start()
    assert processor.route(receipt, wait=10, primary=False).name in ("near", "far")


def test_a_lost_replica_is_not_chosen(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed(replicas={"timeout": 0.3, "lost_after": 1.0})
    site.start()
    receipt = committed(site, 1)
    has(replicas, "near", 1)
    replicas.pause("near")
    committed(site, 2)
    # What is published decides, in this process as in every other.
    wait_until(lambda: _published(site)["near"].state == "lost")
    assert replicas.shows("near", 1), "near must have the write although it is lost"
    has(replicas, "far", 1)
    assert processor.route(receipt).name == "far"


def test_a_replica_that_is_back_is_chosen_as_soon_as_it_is_reported_to_have_a_write(
    followed: Callable[..., Site], replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = replicas.standbys["near"]
    proxy = Proxy(("127.0.0.1", near.port), server=near)
    try:
        site = followed(replicas={"servers": {"near": proxy.dsn_of()}})
        proxy.off()
        site.start()
        wait_until(lambda: _published(site)["near"].state == "away")
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


def _published(site: Site) -> dict[str, Any]:
    """The published status of the replicas."""
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
    assert receipt.wait("replicated", 10).state == "replicated"
    primary.kill()
    assert processor.route(receipt).name == "near"
    site.redis.delete(site.lane().commits)
    assert processor.route(receipt).name == "near"
    (waiting,) = site.submit(write(2))
    with pytest.raises(processor.ReplicaBehind, match="accepted"):
        processor.route(waiting, wait=0.2)


def test_without_replicas_the_primary_is_chosen_once_the_write_is_committed(
    site_of: Callable[..., Site], configured: Callable[[Site], Site]
) -> None:
    site = configured(site_of())
    (receipt,) = site.submit(write(1))
    threading.Timer(0.2, site.start).start()
    assert processor.route(receipt, wait=10).name == "primary"
    with pytest.raises(processor.ReplicaBehind):
        processor.route(receipt, primary=False)


def test_with_tracking_off_the_replicas_are_asked_directly(
    followed: Callable[..., Site], replicas: Replicas
) -> None:
    site = followed()
    configure(site.changed(replicas={"tracking": False}))
    drain_thread.start(site.changed(replicas={"tracking": False}))
    replicas.pause("near")
    receipt = committed(site)
    assert processor.route(receipt, wait=10, primary=False).name == "far"


@pytest.mark.parametrize("text", ["", "near", "~~~"])
def test_a_text_that_is_not_a_receipt_is_refused(text: str) -> None:
    with pytest.raises(processor.InvalidTransaction, match="receipt"):
        processor.route(text)


@pytest.mark.parametrize("given", [None, b"text", 5, ["text"]])
def test_anything_but_a_receipt_or_text_is_refused(given: Any) -> None:
    said = f"after: must be a receipt or its text, got {type(given).__name__} .give what submit"
    with pytest.raises(processor.InvalidTransaction, match=said):
        processor.route(given)
    if given is not None:
        with pytest.raises(processor.InvalidTransaction, match=said):
            processor.read("item", after=given)


@pytest.mark.parametrize("wait", NO_SECONDS)
def test_a_wait_must_be_a_number_of_seconds(wait: Any) -> None:
    receipt = Receipt(processor.new_id(), "default:0", "1-1", processor.new_id())
    with pytest.raises(processor.InvalidTransaction, match=r"wait: must be a number of seconds"):
        processor.route(receipt, wait=wait)


# A name that is given to another server.


def exchanged(replicas: Replicas) -> dict[str, str]:
    near, far = replicas.servers.values()
    return {"near": far, "far": near}


def server_of(site: Site, name: str) -> bytes:
    """The published server of a name."""
    published = site.redis.hget(f"{site.settings.namespace}:servers", name) or b""
    return bytes(published.partition(b" ")[0])


def test_after_a_name_is_given_to_another_server_its_progress_is_that_servers(
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


def test_without_a_watch_the_server_of_a_name_is_believed_not_an_old_report(
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
    assert receipt.status().replicas == {"near": True, "far": False}, "no server can be asked"


def test_reports_on_the_previous_server_are_withdrawn_even_while_redis_is_full(
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


def test_if_two_processors_use_a_name_for_two_servers_the_most_recent_change_wins(
    site: Site, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas.pause("far")
    receipt = committed(site, 1)
    wait_until(lambda: receipt.status().replicas["near"])
    ours = server_of(site, "near")
    other = site.run(replicas={"servers": exchanged(replicas)})
    wait_until(lambda: server_of(site, "far") == ours != server_of(site, "near"))
    for n in range(2, 20):
        receipt = committed(site, n)
        has(replicas, "near", n)
        assert receipt.wait("replicated", 0.05).replicas == {"near": False, "far": False}
    assert other.terminate() == 0
    monkeypatch.setattr(status, "REPORT_LIFETIME", 2.0)
    wait_until(lambda: receipt.status().replicas == {"near": True, "far": False})


def test_the_progress_of_a_replica_rebuilt_from_an_older_copy_is_what_it_shows(
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
