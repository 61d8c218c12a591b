"""Connections to Redis that something closed while nobody used them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import processor
from processor.config import loader
from processor.errors import RedisUnavailable
from processor.reads import reader
from processor.receipts import tracker
from tests.harness.proxy import Proxy
from tests.harness.site import Site, write
from tests.harness.wait import wait_until


@pytest.fixture
def proxy(proxy_to, redis_server) -> Proxy:
    return proxy_to(redis_server)


@pytest.fixture
def site(proxy: Proxy, site_of: Callable[..., Site]) -> Iterator[Site]:
    """A site whose application reaches Redis through the proxy."""
    site = site_of(redis=proxy, overlay={"tables": {"item": ["id"]}})
    site.execute("create table item (id int primary key)")
    yield in_use(site)
    loader.configure({})


def in_use(site: Site) -> Site:
    loader.configure(site.settings)
    for each in (tracker.close, reader.close):
        each()
    return site


def questions(receipt: Any) -> list[Callable[[], Any]]:
    """Whatever an application asks, none of which changes anything."""
    return [
        receipt.status,
        lambda: receipt.wait(timeout=0.01),
        lambda: processor.read("item", {"id": 1}),
        lambda: processor.cached("no such name"),
    ]


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_whatever_may_be_repeated_survives_idle_connections_that_a_firewall_closed(
    how: str, site: Site, proxy: Proxy
) -> None:
    receipt = processor.submit(write(1))
    for question in questions(receipt):
        question()
        getattr(proxy, how)()
        question()
        processor.submit(write(2))


def test_whatever_may_be_repeated_is_asked_again_if_the_connection_ends_with_the_question(
    site: Site, proxy: Proxy
) -> None:
    receipt = processor.submit(write(1))
    for question in questions(receipt):
        question()
        proxy.cut_after(1)
        question()


def test_the_timeout_of_redis_closes_idle_connections_and_no_question_fails(
    own_redis, site_of
) -> None:
    server = own_redis()
    site = site_of(redis=server, overlay={"tables": {"item": ["id"]}})
    site.execute("create table item (id int primary key)")
    in_use(site)
    receipt = processor.submit(write(1))
    for question in questions(receipt):
        question()
    site.redis.config_set("timeout", 1)
    clients = [each["id"] for each in site.redis.client_list(_type="normal")]
    wait_until(
        lambda: len({each["id"] for each in site.redis.client_list()} & set(clients)) <= 1, 10
    )
    for question in questions(receipt):
        question()
    processor.submit(write(2))
    loader.configure({})


def test_a_question_to_a_frozen_redis_takes_no_longer_than_its_timeout(
    site: Site, proxy: Proxy
) -> None:
    receipt = processor.submit(write(1))
    receipt.status()
    proxy.hold()
    begun = time.monotonic()
    with pytest.raises(RedisUnavailable, match="did not respond"):
        receipt.status()
    assert time.monotonic() - begun < 1.5 * site.settings.redis.timeout


def test_a_submit_after_the_password_changed_is_refused_and_not_unknown(
    own_redis, site_of
) -> None:
    """Nothing was sent: the connection had been closed before, and the next one was refused."""
    server = own_redis({"requirepass": "first"})
    site = site_of(redis=server)
    in_use(site)
    processor.submit(write(1))
    site.redis.config_set("requirepass", "second")
    site.redis.client_kill_filter(_type="normal", skipme=True)
    for attempt in (lambda: processor.submit(write(2)),
                    lambda: processor.submit_many([write(3)])):  # fmt: skip
        with pytest.raises(RedisUnavailable, match="credentials") as refused:
            attempt()
        assert type(refused.value) is RedisUnavailable
    site.redis.config_set("requirepass", "first")
    processor.submit(write(4))
    assert site.depth() == 2
    loader.configure({})


def test_a_user_that_was_removed_is_refused_and_not_unknown(own_redis, site_of) -> None:
    server = own_redis()
    admin = site_of(redis=server).redis
    admin.execute_command("ACL", "SETUSER", "app", "on", ">one", "~*", "+@all")
    url = server.url.replace("redis://", "redis://app:one@")
    site = site_of(redis=server)
    in_use_settings = site.changed(redis={"url": url})
    loader.configure(in_use_settings)
    processor.submit(write(1))
    admin.execute_command("ACL", "SETUSER", "app", "resetpass", ">two")
    admin.execute_command("CLIENT", "KILL", "USER", "app")
    with pytest.raises(RedisUnavailable, match="credentials") as refused:
        processor.submit(write(2))
    assert type(refused.value) is RedisUnavailable
    loader.configure({})
