"""The message about an unreachable server names the server and the reason, never a password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from processor.config.settings import Database as Settings
from processor.connections.postgres_session import PostgresSession
from processor.connections.redis_client import RedisConnection
from processor.errors import DatabaseUnavailable, RedisUnavailable
from processor.telemetry.progress import Progress
from tests.harness.site import write
from tests.harness.wait import wait_until

_SSL_REQUEST = (80877103).to_bytes(4)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, reserved for the test."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def postgres_message(dsn: str) -> str:
    """The message of the error that connecting raises."""
    database = PostgresSession(Settings(dsn=dsn), Progress(), application="test")
    with pytest.raises(DatabaseUnavailable) as caught:
        database.connect()
    return str(caught.value)


def test_a_postgres_server_that_is_down_is_named(closed_port: int) -> None:
    message = postgres_message(f"postgresql://u:s3cret@127.0.0.1:{closed_port}/x")
    assert message == f"cannot connect to PostgreSQL at 127.0.0.1:{closed_port}: Connection refused"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dbname": "nowhere"}, 'FATAL:  database "nowhere" does not exist'),
        ({"user": "stranger"}, 'FATAL:  role "stranger" does not exist'),
        ({"sslmode": "require"}, "server does not support SSL, but SSL was required"),
        ({"host": "nowhere.invalid"}, 'could not translate host name "nowhere.invalid"'),
        ({"host": "/nowhere"}, 'connection to server on socket "/nowhere/.s.PGSQL'),
        ({"channel_binding": "require"}, "channel binding required, but server"),
        ({"require_auth": "md5"}, 'authentication method requirement "md5" failed'),
        # All hosts of `database.dsn` are standbys until one of them is promoted.
        ({"target_session_attrs": "standby"}, "server is not in hot standby mode"),
        (
            {"target_session_attrs": "read-write",
             "options": "-cdefault_transaction_read_only=on"},
            "session is read-only",
        ),
        # These messages quote the setting, and a password may have been typed there by mistake.
        ({"sslmode": "s3cret"}, "OperationalError"),
    ],
)
def test_the_message_says_why_postgres_cannot_be_connected_to(
    change: dict[str, str], reason: str, postgres_server: Any
) -> None:
    parts = {"host": "127.0.0.1", "port": postgres_server.port, "user": "postgres"} | change
    message = postgres_message(" ".join(f"{name}={value}" for name, value in parts.items()))
    address = f"{parts['host']}:{parts['port']}"
    assert message.startswith(f"cannot connect to PostgreSQL at {address}: {reason}")
    assert "s3cret" not in message


def test_of_several_servers_the_read_only_one_is_named(
    closed_port: int, postgres_server: Any
) -> None:
    message = postgres_message(
        f"host=127.0.0.1,127.0.0.1 port={closed_port},{postgres_server.port} user=postgres"
        " password=s3cret options=-cdefault_transaction_read_only=on"
    )
    address = f"127.0.0.1:{postgres_server.port}"
    assert message.startswith(f"PostgreSQL at {address} is read-only (25006) (")
    assert "s3cret" not in message


def test_the_message_says_that_the_password_is_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=ask_for_password, args=(listener,))
        server.start()
        message = postgres_message(f"host=127.0.0.1 port={port} user=u passfile=/nowhere")
        server.join()
    assert message.endswith(f"127.0.0.1:{port}: fe_sendauth: no password supplied")


def ask_for_password(listener: socket.socket) -> None:
    """Answer as PostgreSQL does if pg_hba.conf says `password` for the role."""
    client, _ = listener.accept()
    with client:
        if client.recv(1024)[4:8] == _SSL_REQUEST:
            client.sendall(b"N")
            client.recv(1024)
        client.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
        client.recv(1)


def test_a_server_that_does_not_speak_postgres_is_named(redis_server: Any) -> None:
    address = f"127.0.0.1:{redis_server.port}"
    database = PostgresSession(
        Settings(dsn=f"postgresql://{address}/x", connect_timeout=0.5), Progress(),
        application="test",
    )  # fmt: skip
    with pytest.raises(DatabaseUnavailable, match=address):
        database.connect()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "redis://:s3cret@127.0.0.1:{port}/0",
            "Redis at 127.0.0.1:{port} is unavailable: Connection refused",
        ),
        ("redis://nowhere.invalid", "Redis at nowhere.invalid:6379 is unavailable: {no_name}"),
        ("unix:///nowhere", "Redis at /nowhere is unavailable: No such file or directory"),
        ("redis://127.0.0.1:{redis}/99", "has no database of this number"),
    ],
)
def test_the_message_says_why_redis_is_unavailable(
    url: str, reason: str, closed_port: int, redis_server: Any
) -> None:
    # The second text appears where no name server answers.
    no_name = "(Name or service not known|Temporary failure in name resolution)"
    expected = reason.format(port=closed_port, no_name=no_name)
    connection = RedisConnection(url.format(port=closed_port, redis=redis_server.port), 2.0)
    with pytest.raises(RedisUnavailable, match=expected) as caught:
        connection.call("PING")
    assert "s3cret" not in str(caught.value)


def test_a_connection_that_redis_closed_is_not_taken_for_another_program(own_redis) -> None:
    server = own_redis()
    connection = RedisConnection(server.url, 2.0)
    connection.call("PING")
    server.stop()
    with pytest.raises(RedisUnavailable, match=r"closed the connection|reset") as caught:
        connection.call("PING")
    assert "does not answer as Redis does" not in str(caught.value)


def test_the_url_does_not_change_how_replies_are_read(redis_server: Any, redis: Any) -> None:
    redis.hset("h", "field", "value")
    connection = RedisConnection(f"{redis_server.url}?decode_responses=true&protocol=3", 2.0)
    assert connection.call("HGETALL", "h") == [b"field", b"value"]
    connection.close()


def test_a_cluster_of_redis_is_refused_in_words(own_redis, site_of) -> None:
    server = own_redis({"cluster-enabled": "yes"})
    site = site_of(redis=server)
    site.redis.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    wait_until(lambda: site.redis.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    with pytest.raises(RedisUnavailable, match="part of a Redis Cluster, which is not supported"):
        site.submit(write(1))
