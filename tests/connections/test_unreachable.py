"""What is said of a server that cannot be reached: which one, and why, and never a password."""

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

_SSL_REQUEST = (80877103).to_bytes(4)


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port at which nobody listens, kept for the test."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def said_of_postgres(dsn: str) -> str:
    database = PostgresSession(Settings(dsn=dsn), Progress(), application="test")
    with pytest.raises(DatabaseUnavailable) as caught:
        database.connect()
    return str(caught.value)


def test_postgres_that_is_off_is_named(nobody: int) -> None:
    said = said_of_postgres(f"postgresql://u:s3cret@127.0.0.1:{nobody}/x")
    assert said == f"cannot open a session of PostgreSQL at 127.0.0.1:{nobody}: Connection refused"


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
        # All hosts of `database.dsn` are standbys while nobody has been promoted yet.
        ({"target_session_attrs": "standby"}, "server is not in hot standby mode"),
        (
            {"target_session_attrs": "read-write",
             "options": "-cdefault_transaction_read_only=on"},
            "session is read-only",
        ),
        # These repeat what was written, and who wrote it may have slipped with a password.
        ({"sslmode": "s3cret"}, "OperationalError"),
    ],
)
def test_why_postgres_opens_no_session_is_told(
    change: dict[str, str], reason: str, postgres_server: Any
) -> None:
    parts = {"host": "127.0.0.1", "port": postgres_server.port, "user": "postgres"} | change
    said = said_of_postgres(" ".join(f"{name}={value}" for name, value in parts.items()))
    place = f"{parts['host']}:{parts['port']}"
    assert said.startswith(f"cannot open a session of PostgreSQL at {place}: {reason}")
    assert "s3cret" not in said


def test_of_several_servers_the_one_that_only_reads_is_named(
    nobody: int, postgres_server: Any
) -> None:
    said = said_of_postgres(
        f"host=127.0.0.1,127.0.0.1 port={nobody},{postgres_server.port} user=postgres"
        " password=s3cret options=-cdefault_transaction_read_only=on"
    )
    place = f"127.0.0.1:{postgres_server.port}"
    assert said.startswith(f"the server at {place} only reads (25006) (")
    assert "s3cret" not in said


def test_a_password_that_is_missing_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asker = threading.Thread(target=asks_for_a_password, args=(listener,))
        asker.start()
        said = said_of_postgres(f"host=127.0.0.1 port={port} user=u passfile=/nowhere")
        asker.join()
    assert said.endswith(f"127.0.0.1:{port}: fe_sendauth: no password supplied")


def asks_for_a_password(listener: socket.socket) -> None:
    """What PostgreSQL answers to a role whose line of pg_hba.conf says `password`."""
    client, _ = listener.accept()
    with client:
        if client.recv(1024)[4:8] == _SSL_REQUEST:
            client.sendall(b"N")
            client.recv(1024)
        client.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
        client.recv(1)


def test_a_server_that_is_none_of_postgres_is_named(redis_server: Any) -> None:
    address = f"127.0.0.1:{redis_server.port}"
    database = PostgresSession(
        Settings(dsn=f"postgresql://{address}/x", connect_timeout=0.5), Progress(),
        application="test",
    )  # fmt: skip
    with pytest.raises(DatabaseUnavailable, match=address):
        database.connect()


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("redis://:s3cret@127.0.0.1:{nobody}/0", "away at 127.0.0.1:{nobody}: Connection refused"),
        ("redis://nowhere.invalid", "away at nowhere.invalid:6379: {no_name}"),
        ("unix:///nowhere", "away at /nowhere: No such file or directory"),
        ("redis://127.0.0.1:{redis}/99", "refused the connection"),
    ],
)
def test_why_redis_is_away_is_told(
    where: str, reason: str, nobody: int, redis_server: Any
) -> None:
    url = where.format(nobody=nobody, redis=redis_server.port)
    # The second is said where no name server answers.
    no_name = "(Name or service not known|Temporary failure in name resolution)"
    told = reason.format(nobody=nobody, no_name=no_name)
    with pytest.raises(RedisUnavailable, match=told) as caught:
        RedisConnection(url, 2.0).call("PING")
    assert "s3cret" not in str(caught.value)


def test_how_replies_are_read_is_not_up_to_the_address(redis_server: Any, redis: Any) -> None:
    redis.hset("h", "field", "value")
    connection = RedisConnection(f"{redis_server.url}?decode_responses=true&protocol=3", 2.0)
    assert connection.call("HGETALL", "h") == [b"field", b"value"]
    connection.close()
