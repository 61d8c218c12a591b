"""A primary with two replicas, and a site that follows them.

The tests of a module share them; each test finds them empty, with both replicas replaying. A test
that stops, promotes or kills a server makes its own.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from processor.config import loader
from processor.embedded import PostgresServer, Standby
from processor.receipts import tracker
from processor.receipts.receipt import Receipt
from tests.harness.servers import FAST, execute
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until

#: Seconds between the reports of a replica to its primary; PostgreSQL's minimum.
REPORTS = {"wal_receiver_status_interval": 1}


class Replicas:
    """The servers. The replicas are named `near` and `far`."""

    def __init__(self, primary: PostgresServer, standbys: dict[str, Standby]) -> None:
        self.primary, self.standbys = primary, standbys

    @property
    def servers(self) -> dict[str, str]:
        """The setting `replicas.servers`."""
        return {name: standby.dsn for name, standby in self.standbys.items()}

    def execute(self, name: str, sql: str) -> list[tuple[Any, ...]]:
        """Run `sql` on a replica; return the rows."""
        return execute(self.standbys[name].dsn, sql)

    def pause(self, name: str) -> None:
        """Pause the replay of a replica."""
        self.execute(name, "select pg_wal_replay_pause()")
        wait_until(
            lambda: self.execute(name, "select pg_get_wal_replay_pause_state()") == [("paused",)]
        )

    def resume(self, name: str) -> None:
        self.execute(name, "select pg_wal_replay_resume()")

    def shows(self, name: str, n: int) -> bool:
        """Whether a replica shows a row of the tape."""
        return bool(self.execute(name, f"select n from tape where n = {n}"))

    def catch_up(self) -> None:
        """Wait until both replicas have replayed what the primary has written."""
        (written,) = execute(self.primary.dsn, "select pg_current_wal_lsn()::text")[0]
        for name in self.standbys:
            wait_until(
                lambda name=name: self.execute(
                    name, f"select pg_last_wal_replay_lsn() >= '{written}'"
                )[0][0],
                ignore=psycopg2.Error,
            )

    def delay(self, name: str, delay: str) -> None:
        """Delay each commit on a replica (`recovery_min_apply_delay`)."""
        self.standbys[name].reload({"recovery_min_apply_delay": delay})
        wait_until(
            lambda: self.execute(name, "show recovery_min_apply_delay") == [(delay,)]
        )

    def empty(self) -> None:
        """Restore the initial state: replaying, without tables, with the default settings."""
        for name in self.standbys:
            self.resume(name)
            self.delay(name, "0")
        self.primary.reload({"synchronous_commit": "on", "synchronous_standby_names": ""})
        execute(self.primary.dsn, "drop schema if exists processor cascade")
        execute(self.primary.dsn, "drop table if exists tape, account")
        self.catch_up()


@pytest.fixture(scope="module")
def replica_servers(postgres_template: PostgresServer) -> Iterator[Replicas]:
    with ExitStack() as stack:
        primary = stack.enter_context(PostgresServer(FAST, copy_of=postgres_template))
        made = {name: Standby.of(primary, name=name, settings=REPORTS) for name in ("near", "far")}
        for standby in made.values():
            stack.enter_context(standby)
        yield Replicas(primary, made)


@pytest.fixture
def replicas(replica_servers: Replicas) -> Replicas:
    """The servers, empty."""
    replica_servers.empty()
    return replica_servers


@pytest.fixture
def configured() -> Iterator[Callable[[Site], Site]]:
    """`configured(site)`: make the site's settings those of this process."""

    def configure(site: Site) -> Site:
        loader.configure(site.settings)
        return site

    yield configure
    with contextlib.suppress(Exception):
        tracker.close()
    loader.configure({})


@pytest.fixture
def followed(
    site_of: Callable[..., Site], replicas: Replicas, configured: Callable[[Site], Site]
) -> Callable[..., Site]:
    """`followed(**settings)`: a site whose replicas are followed; its processor is not started.

    `servers=False`: the settings name no replica, so the watch finds them in pg_stat_replication.
    """

    def make(*, servers: bool = True, **settings: Any) -> Site:
        named = replicas.servers if servers else {}
        own = {"replicas": {"servers": named, "interval": 0.02}}
        site = configured(site_of(postgres=replicas.primary, **merged(own, settings)))
        replicas.catch_up()
        return site

    return make


def copied(standby: Standby) -> Path:
    """Copy a replica's data directory while the replica is stopped; return the copy."""
    copy = standby.data.with_name("older")
    standby.stop()
    subprocess.run(["cp", "-a", standby.data, copy], check=True)
    standby.start()
    return copy


def committed(site: Site, n: int = 1) -> Receipt:
    """Submit a number for the tape and wait until it is committed."""
    (receipt,) = site.submit(write(n))
    assert receipt.wait(timeout=10).state == "committed"
    return receipt
