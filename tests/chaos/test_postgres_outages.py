"""PostgreSQL fails in every way it can: nothing is lost or doubled, no attempt is spent (P4).

A producer submits throughout. Each of its transactions has one attempt, so an attempt spent on an
outage would show as a dead letter. The promise allows two seconds to resume, five after a crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg2
import pytest

from processor.embedded import PostgresServer
from processor.ledger import schema
from processor.runtime import drain_thread
from tests.harness.servers import Factory, execute
from tests.harness.site import Site, counted, step, write
from tests.harness.wait import wait_until

AWAY = psycopg2.Error


def session(site: Site) -> int:
    """Return the pid of the backend of the processor's writing session."""
    found = "select pid from pg_stat_activity where application_name like 'processor %'"
    return int(site.one(found))


# The server itself.


@pytest.mark.parametrize("how", ["stopped", "stopped at once", "killed"])
def test_postgres_is_unavailable_and_comes_back(how: str, own_postgres, site_of) -> None:
    server = own_postgres()
    site = site_of(postgres=server)
    site.start()
    load = site.load()
    load.grow(20)

    if how == "killed":
        server.kill()
    else:
        server.stop("fast" if how == "stopped" else "immediate")
    site.shows("outage")
    load.grow(20)
    server.start()
    site.resumes(within=2.0)

    load.grow(5)
    site.whole(load.end())
    site.shows("running")


def test_a_crashed_backend_takes_all_sessions_with_it(own_postgres, site_of) -> None:
    server = own_postgres()
    site = site_of(postgres=server)
    site.start()
    load = site.load()
    load.grow(20)
    other = psycopg2.connect(server.dsn)

    os.kill(other.info.backend_pid, signal.SIGKILL)
    since = time.time()
    wait_until(lambda: site.one("select 1"), ignore=AWAY)
    site.resumes(within=5.0, since=since)

    other.close()
    load.grow(5)
    site.whole(load.end())


def test_the_session_is_ended_by_an_administrator(site: Site) -> None:
    site.start()
    load = site.load()
    for _ in range(3):
        load.grow(20)
        assert site.one("select pg_terminate_backend(%s)", (session(site),))
        site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("children", [True, False], ids=["all of it", "the postmaster alone"])
def test_a_frozen_postgres_is_an_outage_until_it_is_thawed(
    children: bool, own_postgres, site_of
) -> None:
    server = own_postgres()
    site = site_of(postgres=server)
    site.start()
    load = site.load()
    load.grow(20)

    ended = session(site)
    server.freeze(children=children)
    if not children:
        # Open sessions still work; only a new connection fails.
        os.kill(ended, signal.SIGTERM)
    site.shows("outage")
    load.grow(20)
    server.thaw()
    site.resumes(within=2.0)

    site.whole(load.end())


# The network.


def test_postgres_is_behind_a_black_hole(proxy_to, postgres_server, site_of) -> None:
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    proxy.hold()
    site.shows("outage")
    load.grow(20)
    proxy.release()
    site.resumes(within=2.0)

    site.whole(load.end())


def test_a_black_hole_lets_requests_to_postgres_through_and_no_reply_back(
    proxy_to, postgres_server, site_of
) -> None:
    """Rules 13 and 18: the ledger has the commit, and the old session blocks nothing."""
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    proxy.hold("down")
    site.shows("outage")
    load.grow(20)
    proxy.reset()
    proxy.release()
    site.resumes(within=2.0)

    site.whole(load.end())


def test_the_host_of_postgres_is_off_and_on_again(proxy_to, postgres_server, site_of) -> None:
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    proxy.off()
    site.shows("outage")
    load.grow(20)
    proxy.on()
    site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("ending", ["reset", "cut"])
def test_connections_to_postgres_are_closed_repeatedly(
    ending: str, proxy_to, postgres_server, site_of
) -> None:
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy)
    site.start()
    load = site.load()

    for count in (1, 7, 100, 1_000, 5_000):
        load.grow(10)
        proxy.cut_after(count, "up" if count % 2 else "down", ending)
        load.grow(10)
        site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("executed", [True, False], ids=["executed", "not executed"])
@pytest.mark.parametrize("ending", ["cut", "reset", "hold"])
def test_the_reply_to_a_commit_is_lost(
    ending: str, executed: bool, proxy_to, postgres_server, site_of
) -> None:
    """Rule 13: the ledger decides whether the batch was committed."""
    proxy = proxy_to(postgres_server)
    site = site_of(postgres=proxy, database={"takeover": 20.0})
    site.start()
    load = site.load()
    load.grow(20)
    known = counted("known")

    lost = proxy.swallow(b"COMMIT;", ending, executed=executed)
    lost.wait()
    # If held, the call must time out first; the new session then terminates the old one.
    site.resumes(within=2.0 + (1.5 if ending == "hold" else 0.0))

    site.whole(load.end())
    assert (known() > 0) == executed


# A server that replies and does no work.


def test_a_read_only_postgres_is_an_outage(own_postgres, site_of) -> None:
    server = own_postgres()
    site = site_of(postgres=server)
    site.start()
    load = site.load()
    load.grow(20)

    server.reload({"default_transaction_read_only": True})
    site.shows("outage")
    assert "25006" in site.reason
    load.grow(20)
    server.reload({"default_transaction_read_only": False})
    site.resumes(within=2.0)

    site.whole(load.end())


def test_postgres_has_no_connection_left(own_postgres, proxy_to, site_of) -> None:
    server = own_postgres({"max_connections": 12})
    proxy = proxy_to(server)
    site = site_of(postgres=proxy)
    site.start()
    load = site.load()
    load.grow(20)

    with ExitStack() as stack:
        # Off, so that the processor does not get the last connection.
        proxy.off()
        wait_until(lambda: taken(server, stack))
        proxy.on()
        wait_until(lambda: "clients" in site.reason, message=lambda: site.reason)
        load.grow(20)
    site.resumes(within=2.0)

    site.whole(load.end())


def taken(server: PostgresServer, stack: ExitStack) -> bool:
    """Take every free connection; return True once the server has refused one."""
    try:
        while True:
            stack.callback(psycopg2.connect(server.dsn).close)
    except psycopg2.OperationalError:
        return True


FULL = """
create table full_disk (yes bool);
create function refuse() returns trigger language plpgsql as $$
begin
    if exists (select from full_disk) then
        raise exception 'could not extend file' using errcode = '53100';
    end if;
    return new;
end $$;
create trigger refuse before insert on tape for each row execute function refuse();
"""


def test_work_resumes_after_a_full_disk(site: Site) -> None:
    site.execute(FULL)
    site.start()
    load = site.load()
    load.grow(20)

    site.execute("insert into full_disk values (true)")
    site.shows("outage")
    assert "53100" in site.reason
    load.grow(20)
    site.execute("delete from full_disk")
    site.resumes(within=2.0)

    site.whole(load.end())


def test_a_disk_that_stays_full_makes_no_dead_letter(site: Site) -> None:
    """The server ends no session: the first entry of the batch is not to blame."""
    site.execute(FULL + "insert into full_disk values (true)")
    drain = site.drain()
    site.submit(write(1, attempts=1))
    for _ in range(8):
        step(drain)
    assert site.dead() == []

    site.execute("delete from full_disk")
    step(drain)

    assert site.tape() == [1]


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system of 12 MB at `path`, or skip the test."""
    path.mkdir()
    owner = path.parent.stat()
    options = f"size=12m,uid={owner.st_uid},gid={owner.st_gid}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no privilege to mount a small file system; the test above covers most of this")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(8192))


def test_work_resumes_after_a_file_system_was_full(own_postgres, site_of) -> None:
    server = own_postgres()
    path = server.directory / "small"
    with small_disk(path):
        site = site_of(postgres=server)
        execute(server.dsn, f"create tablespace small location '{path}'")
        site.execute("alter table tape set tablespace small")
        site.start()
        load = site.load()
        load.grow(20)

        with pytest.raises(OSError, match="space"):
            fill(path / "ballast")
        site.shows("outage", timeout=20)
        assert "53100" in site.reason
        (path / "ballast").unlink()
        site.resumes(within=2.0)

        site.whole(load.end())
        server.stop()


def test_a_processor_starts_during_an_outage(own_postgres, site_of) -> None:
    server = own_postgres()
    site = site_of(postgres=server)
    server.stop()
    drain_thread.start(site.settings)
    site.shows("outage")
    load = site.load()
    load.grow(20)
    server.start()
    site.resumes(within=2.0)

    site.whole(load.end())


def test_a_schema_that_goes_missing_is_an_outage_with_a_remedy(site: Site) -> None:
    site.start()
    load = site.load()
    load.grow(20)

    site.execute("alter schema processor rename to elsewhere")
    site.shows("outage")
    wait_until(lambda: "init-db" in site.reason, message=lambda: site.reason)
    load.grow(20)
    site.execute("alter schema elsewhere rename to processor")
    site.resumes(within=2.0)

    site.whole(load.end())


@pytest.mark.parametrize("init", [False, True])
def test_a_schema_of_a_later_release_is_an_outage_and_stays_as_it_is(init: bool, site_of) -> None:
    site = site_of(database={"init": init})
    site.execute("update processor.meta set version = 99, oldest = 99, newest = 99")
    drain_thread.start(site.settings)
    site.submit(write(1))
    site.shows("outage")
    wait_until(lambda: "version 99" in site.reason, message=lambda: site.reason)

    assert site.one("select processor.version()") == 99
    site.execute(f"update processor.meta set version = 1, oldest = 1, newest = {schema.VERSION}")
    site.commits(1)


def test_a_transaction_in_progress_when_the_server_crashes_keeps_its_only_attempt(
    site_of: Callable[..., Site], own_postgres: Factory
) -> None:
    postgres = own_postgres()
    site = site_of(postgres=postgres, retry={"attempts": 1})
    drain = site.drain()
    step(drain)
    postgres.restart("immediate")
    site.submit(write(1))

    for _ in range(4):
        step(drain)

    assert site.dead() == []
    assert site.tape() == [1]
