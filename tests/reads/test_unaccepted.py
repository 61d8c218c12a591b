"""A pending write is shown only if it was accepted: its entry proves its record (rule 105).

Everybody who may submit may also write into the overlay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

import processor
from processor.buffer import accepted
from processor.buffer.overlay import Overlay
from processor.config import loader
from processor.errors import ProcessorError
from processor.reads import reader
from processor.runtime.overlay_cleaner import OverlayCleaner
from processor.telemetry import metrics
from processor.transaction.builder import Transaction
from tests.harness.cli import as_user
from tests.harness.site import FAILING, Site, merged, step
from tests.harness.wait import wait_until

TABLE = "create table item (id int primary key, name text not null, n int default 0)"


@pytest.fixture
def shown(site_of: Callable[..., Site]) -> Iterator[Site]:
    """A site that shows pending writes; its passes run when a test makes them."""
    site = site_of(overlay={"tables": {"item": "id"}})
    site.execute(TABLE)
    loader.configure(site.settings)
    yield site
    reader.close()
    loader.configure({})


def insert(n: int, name: str = "true", **options: Any) -> Transaction:
    return Transaction(**options).insert("item", {"id": n, "name": name})


def forge(site: Site, transaction: Transaction, parts: str = "record log lists") -> None:
    """Write what shows a transaction, without its entry, as one with a producer's credentials."""
    commands = Overlay(site.settings).show(
        transaction.encode(time.time(), 100_000), time.time(), "default:0"
    )
    wanted = {"HSETNX": "record", "XADD": "log", "RPUSH": "lists"}
    for command in commands:
        if wanted[str(command[0])] in parts.split():
            site.redis.execute_command(*command)


def names(n: int) -> list[str]:
    return [row["name"] for row in processor.read("item", {"id": n})]


def sweep(site: Site) -> None:
    cleaner = OverlayCleaner(site.settings)
    with closing(cleaner):
        cleaner.clear()


PARTS = ["record log lists", "lists", "record lists", "log lists", "record", "log"]


@pytest.mark.parametrize("parts", PARTS)
def test_a_record_that_was_never_accepted_is_not_read_but_counted_and_swept(
    parts: str, shown: Site
) -> None:
    shown.submit(insert(1), insert(2))
    forge(shown, insert(2, "false"), parts)
    forge(shown, insert(3, "false"), parts)
    before = metrics.value("unaccepted")

    assert (names(1), names(2), names(3)) == (["true"], ["true"], [])
    assert [row["name"] for row in processor.read("item")] == ["true", "true"]
    sweep(shown)
    # What only the log names is removed as if another cleaner had not finished.
    assert (metrics.value("unaccepted") > before) == (parts not in ("log", "log lists"))
    left = shown.redis.llen("processor:overlay:table:item"), shown.redis.hlen("processor:overlay")
    assert (*left, shown.redis.xlen("processor:overlay:log")) == (2, 2, 2)
    assert (names(1), names(2), names(3)) == (["true"], ["true"], [])


def test_another_record_under_the_id_of_an_accepted_transaction_is_not_read(shown: Site) -> None:
    real = insert(1)
    shown.submit(real)
    forge(shown, insert(2, "false", id=real.id))
    assert (names(1), names(2)) == (["true"], [])
    # Settled, it is proven by the record that was accepted with it.
    step(shown.drain())
    assert shown.redis.hkeys("processor:overlay:proven") == [real.id.encode()]
    reader.close()
    assert (names(1), names(2)) == (["true"], [])


def test_a_read_that_must_include_an_unproven_write_fails(shown: Site) -> None:
    real = shown.submit(insert(1))[0]
    forged = insert(2, "false")
    forge(shown, forged)
    with pytest.raises(ProcessorError):
        processor.read("item", {"id": 2}, after=replace(real, id=forged.id))
    assert processor.read("item", {"id": 1}, after=real)[0]["name"] == "true"


def test_a_record_is_proven_wherever_its_entry_waits(
    shown: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted, "_PAGE", 3)
    shown.submit(*(insert(n) for n in range(10)))
    shown.execute(FAILING)
    failing = insert(11, key="k").insert("tape", {"n": 1, "scope": "x"})
    shown.submit(insert(10, delay=60.0), failing, insert(12, key="k"))
    assert [names(n) for n in range(13)] == [["true"]] * 13
    drain = shown.drain()
    wait_until(lambda: step(drain) or shown.parked() == 2, message=lambda: shown.tale())
    sweep(shown)
    reader.close()
    assert [names(n) for n in range(13)] == [["true"]] * 13
    # A clock that is wrong, and a record of release 0.1, which names no lane.
    for n, (at, lane) in enumerate([(0.0, "high:0"), (2e9, "high:0"), (time.time(), "")], 20):
        encoded = insert(n, queue="high").encode(time.time(), 100_000)
        for command in Overlay(shown.settings).show(encoded, at, lane):
            shown.redis.execute_command(*command)
        shown.redis.xadd("processor:{high:0}:stream", {"v": "1", "tx": encoded.body})
        shown.redis.xadd("processor:{high:0}:stream", {"v": "1", "tx": b"{"})
        assert names(n) == ["true"]


def test_the_printed_producer_forges_nothing_that_is_read(site_of: Any, own_redis: Any) -> None:
    server = own_redis()
    site = site_of(server, overlay={"tables": {"item": "id"}})
    site.execute(TABLE)
    url = as_user(server.url, "producer")
    loader.configure(loader.load(merged(site.mapping, {"redis": {"url": url}}), environ={}))
    try:
        receipt = processor.submit(insert(1))
        forge(site, insert(2, "false"))
        assert (names(1), names(2)) == (["true"], [])
        assert processor.read("item", {"id": 1}, after=receipt)[0]["name"] == "true"
        assert site.redis.acl_log() == []
    finally:
        reader.close()
        processor.stop()
        loader.configure({})
